//! Namespaces with parameters, as a dialect's file writes them: `/jobs`, `/ws/generations/{job}`.

/// The parameters of `namespace` where it is one of `pattern`'s.
pub fn params(pattern: &str, namespace: &str) -> Option<Vec<(String, String)>> {
    let mut params = Vec::new();
    let (mut wanted, mut given) = (pattern.split('/'), namespace.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(params),
            (Some(wanted), Some(given)) => {
                let name = wanted
                    .strip_prefix('{')
                    .and_then(|name| name.strip_suffix('}'));
                match name {
                    Some(name) if !given.is_empty() => {
                        params.push((name.to_owned(), given.to_owned()));
                    }
                    None if wanted == given => {}
                    Some(_) | None => return None,
                }
            }
            (Some(_), None) | (None, Some(_)) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_gives_what_stands_in_the_pattern_s_places() {
        assert_eq!(params("/", "/"), Some(vec![]));
        assert_eq!(params("/jobs", "/jobs"), Some(vec![]));
        assert_eq!(
            params("/ws/generations/{job}", "/ws/generations/gen_1"),
            Some(vec![("job".to_owned(), "gen_1".to_owned())])
        );
    }

    #[test]
    fn another_namespace_gives_nothing() {
        for (pattern, namespace) in [
            ("/", "/jobs"),
            ("/jobs", "/"),
            ("/jobs", "/jobs/"),
            ("/jobs", "/jobs2"),
            ("/ws/generations/{job}", "/ws/generations/"),
            ("/ws/generations/{job}", "/ws/generations"),
            ("/ws/generations/{job}", "/ws/generations/a/b"),
            ("/ws/generations/{job}", "/ws/compositions/a"),
        ] {
            assert_eq!(params(pattern, namespace), None, "{pattern} {namespace}");
        }
    }
}
