//! File descriptors: one a connection, so the process asks for as many as it may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are not clients' connections: listeners, NATS, runtimes, requests to the admin listener.
const OWN: u64 = 256;

/// Raises the soft limit to the hard one, and says so if that is too little for `connections`.
pub(super) fn raise_limit(connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit {
            current: limit.maximum,
            ..limit
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::debug!(%error, "the limit on file descriptors cannot be raised");
        }
    }
    // `None` means that there is no limit.
    let Some(current) = getrlimit(Resource::Nofile).current else {
        return;
    };
    let wanted = u64::try_from(connections).map_or(u64::MAX, |count| count.saturating_add(OWN));
    if current < wanted {
        tracing::warn!(
            descriptors = current,
            connections,
            "fewer file descriptors than limits.connections: the rest will fail to connect; raise the hard limit (ulimit -n, LimitNOFILE) or lower limits.connections"
        );
    }
}
