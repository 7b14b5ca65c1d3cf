//! An application that says yes, no, nonsense or nothing.

use http::header::COOKIE;
use relay_testkit::outside::{Outside, Says};
use serde_json::json;

use super::*;

const NOW: WallTime = WallTime::from_unix_micros(1_000_000_000);

fn webhook(server: &Outside) -> Webhook {
    let url = Url::parse(&server.url("/who")).unwrap();
    Webhook::new(url, vec![AUTHORIZATION, COOKIE])
}

async fn asked(webhook: &Webhook, shown: &str, now: WallTime) -> Result<Identity, Refused> {
    if webhook.is_new(shown, now) {
        webhook.ask(shown, || now).await?;
    }
    webhook.known(shown, now)
}

#[tokio::test]
async fn the_application_says_who_somebody_is_and_is_asked_once_in_a_while() {
    let server = Outside::start().await.unwrap();
    let webhook = webhook(&server);
    let words = json!({"user": "a@b.example", "topics": ["job:x"], "expires_in": 60});
    server.says("/who", Says::Json(words.to_string()));
    let mut headers = HeaderMap::new();
    headers.insert("cookie", HeaderValue::from_static("session=s3cret"));
    headers.insert("x-other", HeaderValue::from_static("not forwarded"));
    let shown = webhook.shown(&headers, None, true).unwrap();
    let identity = asked(&webhook, &shown, NOW).await.unwrap();
    assert_eq!(identity.user.unwrap().as_str(), "u--a_40b_2Eexample");
    assert_eq!(
        identity.expires_at,
        Some(later(NOW, Duration::from_secs(60)))
    );
    assert!(asked(&webhook, &shown, NOW).await.is_ok());
    assert_eq!(server.count("/who"), 1);
    let asked_with = &server.asked()[0];
    assert_eq!(asked_with.line, "POST /who");
    assert!(asked_with.text.contains("cookie: session=s3cret"));
    assert!(!asked_with.text.contains("not forwarded"));
    assert!(asked(&webhook, &shown, later(NOW, KEPT[0])).await.is_ok());
    assert_eq!(server.count("/who"), 2);
    let other = webhook.shown(&headers, Some("tok"), true).unwrap();
    assert!(asked(&webhook, &other, NOW).await.is_ok());
    assert!(server.asked()[2].text.contains("authorization: bearer tok"));
    // What was shown is nowhere in memory that could be printed.
    assert!(!format!("{webhook:?} {:?}", webhook.kept.lock()).contains("s3cret"));
    // A page that may not use cookies does not use them here.
    assert_eq!(webhook.shown(&headers, None, false), None);
}

#[tokio::test]
async fn nobody_is_let_in_whom_the_application_did_not_let_in() {
    let server = Outside::start().await.unwrap();
    let webhook = webhook(&server);
    let elsewhere = server.url("/yes");
    server.says("/yes", Says::Json("{\"user\":\"mallory\"}".to_owned()));
    for (number, (says, status, code)) in [
        (Says::Html(401, String::new()), 401, "not_let_in"),
        (
            Says::Html(403, "{\"user\":\"alice\"}".to_owned()),
            401,
            "not_let_in",
        ),
        (
            Says::Html(200, "<html>Sign in</html>".to_owned()),
            503,
            "identity_unavailable",
        ),
        (
            Says::Html(500, "{\"user\":\"alice\"}".to_owned()),
            503,
            "identity_unavailable",
        ),
        (Says::Html(204, String::new()), 503, "identity_unavailable"),
        (Says::Redirect(elsewhere), 503, "identity_unavailable"),
        (Says::Json("{}".to_owned()), 503, "identity_unavailable"),
        (
            Says::Json("{\"user\":\"\"}".to_owned()),
            503,
            "identity_unavailable",
        ),
        (
            Says::Json("{\"user\":\"-\"}".to_owned()),
            503,
            "identity_unavailable",
        ),
        (
            Says::Json("{\"user\":7}".to_owned()),
            503,
            "identity_unavailable",
        ),
        (
            Says::Json("{\"user\":\"a\",\"topics\":\"*\"}".to_owned()),
            503,
            "identity_unavailable",
        ),
        (
            Says::Endless(100 * 1024 * 1024),
            503,
            "identity_unavailable",
        ),
        (Says::Nothing, 503, "identity_unavailable"),
        (Says::Bytes(b"hello".to_vec()), 503, "identity_unavailable"),
    ]
    .into_iter()
    .enumerate()
    {
        server.says("/who", says);
        let shown = format!("\ncookie: session={number}");
        let refused = asked(&webhook, &shown, NOW).await.unwrap_err();
        assert_eq!(
            (refused.status.as_u16(), refused.code),
            (status, code),
            "{number}"
        );
    }
    assert_eq!(server.count("/yes"), 0);
    assert!(webhook.known("\ncookie: session=other", NOW).is_err());
}

#[tokio::test]
async fn an_application_that_hangs_costs_those_who_wait_the_deadline_and_nobody_else() {
    let server = Outside::start().await.unwrap();
    let webhook = webhook(&server);
    server.says("/who", Says::Json("{\"user\":\"alice\"}".to_owned()));
    assert!(asked(&webhook, "\ncookie: a", NOW).await.is_ok());
    server.says("/who", Says::Hangs);
    let hung = async {
        let waits = (0..200).map(|n| {
            let shown = format!("\ncookie: hangs{n}");
            let webhook = &webhook;
            async move { webhook.ask(&shown, || NOW).await }
        });
        futures_util::future::join_all(waits).await
    };
    let known = async {
        tokio::task::yield_now().await;
        assert!(webhook.known("\ncookie: a", NOW).is_ok());
    };
    let (hung, ()) = tokio::join!(hung, known);
    assert!(hung.iter().all(Result::is_err));
    assert!(server.count("/who") <= 1 + UNDER_WAY);
    assert_eq!(webhook.waiting.load(Ordering::Relaxed), 0);
}

#[test]
fn what_is_kept_is_bounded() {
    let url = Url::parse("http://127.0.0.1:1/").unwrap();
    let webhook = Webhook::new(url, Vec::new());
    for n in 0..=MAX_KEPT {
        webhook.keep(&n.to_string(), Err(unavailable()), NOW);
    }
    assert!(webhook.kept.lock().len() <= MAX_KEPT);
    assert!(!webhook.is_new(&MAX_KEPT.to_string(), NOW));
}
