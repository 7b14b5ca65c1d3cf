//! Paths that are the relay's own, which no dialect may take.
//!
//! It knows paths as texts. That the list is whole is shown by a test of the server, which has the routes.
//!
//! Invariant: a path of a dialect that is free here leads no request of the native protocol astray.

/// The relay's own paths; a segment in braces is any text.
pub const OWN_PATHS: [&str; 7] = [
    "/v1/ws",
    "/v1/sse",
    "/v1/poll",
    "/v1/publish",
    "/v1/tickets",
    "/v1/jobs/{id}",
    "/v1/jobs/{id}/milestones/{name}",
];

/// The path of the relay's own that some request could mean as well as `path`.
pub(super) fn taken(path: &str) -> Option<&'static str> {
    OWN_PATHS.into_iter().find(|own| overlap(own, path))
}

/// Whether there is a path that both patterns match.
fn overlap(own: &str, path: &str) -> bool {
    let path = path.strip_suffix('/').unwrap_or(path);
    let (mut own, mut path) = (own.split('/'), path.split('/'));
    loop {
        match (own.next(), path.next()) {
            (None, None) => return true,
            // The rest, whatever it is.
            (Some(_), Some(each)) if each.starts_with("{*") => return true,
            (Some(own), Some(each)) if own == each || has_place(own) || has_place(each) => {}
            _ => return false,
        }
    }
}

fn has_place(segment: &str) -> bool {
    segment.contains('{')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_where_one_request_could_mean_both() {
        for path in [
            "/v1/ws",
            "/v1/ws/",
            "/v1/{anything}",
            "/v1/jobs/mine",
            "/v1/jobs/{job}",
            "/{a}/jobs/{b}",
            "/v1/{*rest}",
            "/v1/jobs/{id}/milestones/m",
            "/v1/p{rest}",
        ] {
            assert!(taken(path).is_some(), "{path}");
        }
        for path in [
            "/v1/jobs",
            "/v1/predictions/{id}",
            "/v1/jobs/{id}/events",
            "/v1/ws/{job}",
            "/v2/jobs/{id}",
        ] {
            assert_eq!(taken(path), None, "{path}");
        }
    }
}
