//! Ports for servers that must come back on the same one.
//!
//! Binding port 0 gives a port that anybody may take between a server's end and its restart, so these
//! are taken from below the range the system hands out by itself, and held by a file lock that every
//! test process honours.
//!
//! Invariant: while a [`Port`] lives, no other [`Port`] on this machine has its number.

use std::collections::hash_map::RandomState;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{Ipv4Addr, TcpListener};

const FIRST: u16 = 18_000;
const COUNT: u16 = 12_000;

/// A loopback port that is this process's until dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// The lock lives as long as the open file; dropping it gives the number back.
    _lock: File,
}

impl Port {
    /// Takes a free port.
    ///
    /// # Errors
    /// When none of the range is free, or the lock files cannot be written.
    pub fn reserve() -> io::Result<Self> {
        let directory = std::env::temp_dir().join("relay-testkit-ports");
        std::fs::create_dir_all(&directory)?;
        let start = RandomState::new().build_hasher().finish() % u64::from(COUNT);
        let start = u16::try_from(start).unwrap_or(0);
        for step in 0..COUNT {
            let number = FIRST + (start + step) % COUNT;
            let lock = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(directory.join(number.to_string()))?;
            if lock.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Ok(Self {
                    number,
                    _lock: lock,
                });
            }
        }
        Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "no free port for a test server",
        ))
    }

    /// The port's number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// `127.0.0.1:<number>`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_held_at_once_are_all_different() {
        let ports: Vec<Port> = (0..20).map(|_| Port::reserve().unwrap()).collect();
        let mut numbers: Vec<u16> = ports.iter().map(Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 20);
        for port in &ports {
            TcpListener::bind(port.address()).unwrap();
        }
    }
}
