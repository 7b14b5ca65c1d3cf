//! The rule value by value.
//!
//! Invariant: what is mended is valid.

use super::*;

fn valid(raw: &str) -> Result<String, String> {
    let mut out = String::new();
    match push_valid(&mut out, "f", raw) {
        Ok(()) => Ok(out),
        Err(refusal) => Err(refusal.to_string()),
    }
}

fn mend(raw: &str) -> (String, Vec<String>) {
    let (mut out, mut lost) = (String::new(), Vec::new());
    push_mended(&mut out, "f", raw, &mut |refusal| {
        lost.push(refusal.field().unwrap_or_default().to_owned());
    });
    assert_eq!(valid(&out).as_ref(), Ok(&out), "{raw}");
    (out, lost)
}

#[test]
fn what_every_reader_can_read_is_taken_as_it_is() {
    for raw in [
        "null",
        "true",
        "-0",
        "1e-400",
        "0e400",
        "1.7976931348623157e308",
        "123456789012345678901234567890",
        "\"\\u0000\\u001f\\ufffe\\uffff\\ufdd0\u{feff}\u{ffff}\u{2028}\\/\"",
        r#""\ud83d\udE00""#,
        r#""\\ud83d""#,
        r#"{"":1,"a":{"a":{"a":[]}},"A":2,"__proto__":{}}"#,
        r#"[{"a":1},{"a":2}]"#,
    ] {
        assert_eq!(valid(raw).as_deref(), Ok(raw));
    }
    assert_eq!(
        valid("{ \"a\" :\n[ 1 ,\t\"x \\\" y\\\\\" ]\r}").unwrap(),
        r#"{"a":[1,"x \" y\\"]}"#
    );
}

#[test]
fn what_some_reader_cannot_read_is_refused_with_its_path_or_replaced() {
    let half = "holds an escape that is not a character, such as half a surrogate pair";
    let beyond = "is beyond what a double holds; send a smaller number, or a string";
    let long = "9".repeat(400);
    for (raw, said, instead, path) in [
        (
            r#""\ud83d""#,
            format!(r#"f: "\ud83d" {half}"#),
            r#""\ufffd""#,
            "f",
        ),
        (
            r#""a\uDE00\ud83d\ud83d\ude00b""#,
            format!(r#"f: "a\uDE00\ud83d\ud83d\ude00b" {half}"#),
            r#""a\ufffd\ufffd\ud83d\ude00b""#,
            "f",
        ),
        (
            r#""\\\ud83d\n""#,
            format!(r#"f: "\\\ud83d\n" {half}"#),
            r#""\\\ufffd\n""#,
            "f",
        ),
        (
            r#"{"a":[1,{"b":"\udfff"}]}"#,
            format!(r#"f.a[1].b: "\udfff" {half}"#),
            r#"{"a":[1,{"b":"\ufffd"}]}"#,
            "f.a[1].b",
        ),
        (
            r#"{"a":{},"\ud800":1}"#,
            format!(r#"f.\ud800: "\ud800" {half}"#),
            r#"{"a":{},"\ufffd":1}"#,
            r"f.\ud800",
        ),
        ("1e400", format!("f: 1e400 {beyond}"), "null", "f"),
        ("-1e309", format!("f: -1e309 {beyond}"), "null", "f"),
        (&long, format!("f: {}… {beyond}", &long[..40]), "null", "f"),
        (
            r#"[[0], -2E+999 ]"#,
            format!("f[1]: -2E+999 {beyond}"),
            "[[0],null]",
            "f[1]",
        ),
        (
            r#"{"a":1,"b":{"x":[{}]},"\u0061":2}"#,
            r"f.\u0061: appears twice; keep one".to_owned(),
            r#"{"b":{"x":[{}]},"\u0061":2}"#,
            "f.a",
        ),
        (
            r#"[{"c":{"a":1,"a":2},"d":0}]"#,
            "f[0].c.a: appears twice; keep one".to_owned(),
            r#"[{"c":{"a":2},"d":0}]"#,
            "f[0].c.a",
        ),
    ] {
        assert_eq!(valid(raw), Err(said), "{raw}");
        assert_eq!(
            mend(raw),
            (instead.to_owned(), vec![path.to_owned()]),
            "{raw}"
        );
    }
}

#[test]
fn everything_wrong_in_one_value_is_replaced() {
    let (out, lost) =
        mend(r#"{"a":1e999,"a":{"x":1,"x":"\udc00","x":2},"b":[1e400],"a":{"y":1,"y":2}}"#);
    assert_eq!(out, r#"{"b":[null],"a":{"y":2}}"#);
    assert_eq!(
        lost,
        [
            "f.a", "f.a.x", "f.a.x", "f.a.x", "f.b[0]", "f.a.y", "f.a", "f.a"
        ]
    );
}

#[test]
fn a_repeated_name_is_found_among_thousands() {
    let many: String = (0..3000).map(|n| format!("\"f{n}\":0,")).collect();
    assert!(valid(&format!("{{{many}\"last\":0}}")).is_ok());
    assert!(valid(&format!("{{{many}\"f7\":0}}")).is_err());
    assert_eq!(mend(&format!("{{{many}\"f7\":1}}")).1, ["f.f7"]);
}

#[test]
fn a_path_is_short() {
    let name = "n".repeat(100);
    let deep = format!(
        "{}1e400{}",
        format!("{{\"{name}\":").repeat(60),
        "}".repeat(60)
    );
    assert!(valid(&deep).unwrap_err().chars().count() < 250);
}
