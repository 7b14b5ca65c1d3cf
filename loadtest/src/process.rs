//! What processes cost: CPU and memory, from the kernel's own accounting.
//!
//! Reads `/proc`; knows nothing of what the processes do.

use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::figure::ratio;

/// A clock tick of `/proc`, in microseconds: `USER_HZ` is 100 on every Linux there is a relay for.
const TICK_MICROS: u64 = 10_000;
/// Reads what a process and those it has started have cost so far, together.
#[derive(Debug, Clone)]
pub(crate) struct Meter {
    pid: u32,
}

/// CPU used by processes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Cpu {
    /// In their own code.
    pub(crate) user_micros: u64,
    /// In the kernel on their behalf.
    pub(crate) system_micros: u64,
    /// How often their threads gave up or lost the processor.
    pub(crate) context_switches: u64,
}

impl Cpu {
    /// User and system together.
    pub(crate) fn micros(self) -> u64 {
        self.user_micros + self.system_micros
    }

    /// What was used since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            user_micros: self.user_micros.saturating_sub(earlier.user_micros),
            system_micros: self.system_micros.saturating_sub(earlier.system_micros),
            context_switches: self
                .context_switches
                .saturating_sub(earlier.context_switches),
        }
    }
}

/// Memory of processes. Kernel memory of their sockets is on top.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Memory {
    /// Their proportional share of what is resident.
    pub(crate) pss_kib: u64,
    /// All that is resident.
    pub(crate) rss_kib: u64,
    /// The most that ever was.
    pub(crate) peak_kib: u64,
}

impl Meter {
    pub(crate) fn of(pid: u32) -> Self {
        Self { pid }
    }

    /// The process and those it has started, now: a server may start workers when it listens already.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let mut pids = vec![self.pid];
        let mut at = 0;
        while let Some(pid) = pids.get(at).copied() {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            let children = children.unwrap_or_default();
            let children = children.split_whitespace();
            pids.extend(children.filter_map(|pid| pid.parse::<u32>().ok()));
            at += 1;
        }
        pids
    }

    /// What `read` says of each of them. One that was started may have ended since it was listed.
    fn each<T>(&self, read: impl Fn(u32) -> Result<T>) -> Result<Vec<T>> {
        let mut all = vec![read(self.pid)?];
        all.extend(
            self.pids()
                .into_iter()
                .skip(1)
                .filter_map(|pid| read(pid).ok()),
        );
        Ok(all)
    }

    /// CPU so far.
    pub(crate) fn cpu(&self) -> Result<Cpu> {
        let mut sum = Cpu::default();
        for cpu in self.each(cpu_of)? {
            sum.user_micros += cpu.user_micros;
            sum.system_micros += cpu.system_micros;
            sum.context_switches += cpu.context_switches;
        }
        Ok(sum)
    }

    /// Memory now.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let mut sum = Memory::default();
        for memory in self.each(memory_of)? {
            sum.pss_kib += memory.pss_kib;
            sum.rss_kib += memory.rss_kib;
            sum.peak_kib += memory.peak_kib;
        }
        Ok(sum)
    }

    /// What is resident now, read often and cheaply.
    pub(crate) fn resident_kib(&self) -> Result<u64> {
        let resident = |pid| field(&read(pid, "status")?, "VmRSS:").context("no VmRSS");
        Ok(self.each(resident)?.iter().sum())
    }
}

fn cpu_of(pid: u32) -> Result<Cpu> {
    let (user, system) = ticks(pid)?;
    let (mut exact, mut switches) = (0, 0);
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = thread?.path();
        // A thread may end between the listing and the reading.
        let read = |file| fs::read_to_string(thread.join(file)).unwrap_or_default();
        let status = read("status");
        switches += field(&status, "voluntary_ctxt_switches:").unwrap_or(0);
        switches += field(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
        let spent = read("schedstat");
        exact += spent
            .split(' ')
            .next()
            .and_then(|nanos| nanos.parse::<u64>().ok())
            .unwrap_or(0)
            / 1000;
    }
    // Ticks say how much of it was whose; the scheduler's own count is exact, where there is one.
    let total = if exact > 0 { exact } else { user + system };
    let user = (total as f64 * ratio(user, user + system)) as u64;
    Ok(Cpu {
        user_micros: user,
        system_micros: total - user,
        context_switches: switches,
    })
}

fn memory_of(pid: u32) -> Result<Memory> {
    let rollup = read(pid, "smaps_rollup")?;
    let status = read(pid, "status")?;
    let kib = |text, name| field(text, name).with_context(|| format!("no {name}"));
    Ok(Memory {
        pss_kib: kib(&rollup, "Pss:")?,
        rss_kib: kib(&rollup, "Rss:")?,
        peak_kib: kib(&status, "VmHWM:")?,
    })
}

/// User and system time in microseconds, to a clock tick.
fn ticks(pid: u32) -> Result<(u64, u64)> {
    let stat = read(pid, "stat")?;
    // The command's name is in brackets and may hold anything, so count from the last bracket.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |at: usize| -> Result<u64> {
        let field = fields.get(at).context("a short /proc/<pid>/stat")?;
        Ok(field.parse::<u64>()? * TICK_MICROS)
    };
    Ok((ticks(11)?, ticks(12)?))
}

fn read(pid: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path)
        .with_context(|| format!("cannot read {path}; does the server still run, as you?"))
}

/// The number behind `name` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_can_be_read() {
        let this = Meter::of(std::process::id());
        assert_eq!(this.pids()[0], std::process::id());
        let memory = this.memory().unwrap();
        assert!(memory.pss_kib > 0 && memory.rss_kib >= memory.pss_kib);
        // The kernel's peak is counted less exactly than what is resident, so the two are not compared.
        assert!(memory.peak_kib > 0 && this.resident_kib().unwrap() > 0);
        let before = this.cpu().unwrap();
        assert!(before.context_switches > 0);
        assert_eq!(before.since(before).micros(), 0);
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "Pss_Anon:  7 kB\nPss:   12 kB\nnonvoluntary_ctxt_switches: 3\nvoluntary_ctxt_switches: 2\n";
        assert_eq!(field(text, "Pss:"), Some(12));
        assert_eq!(field(text, "voluntary_ctxt_switches:"), Some(2));
        assert_eq!(field(text, "Swap:"), None);
    }
}
