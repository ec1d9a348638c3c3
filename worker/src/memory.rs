//! How much memory this machine has, and how much of it is free.

use std::fs;

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total_bytes: u64,
    /// What could be taken without pushing others out.
    pub free_bytes: u64,
}

/// The memory of this machine, or of the container in which the process runs; `None` where the system does not say.
pub fn of_this_machine() -> Option<Memory> {
    let machine = parse_meminfo(&fs::read_to_string("/proc/meminfo").ok()?)?;
    // Inside a container, these are the files of its own control group (version 2).
    let read = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    let number = |name: &str| read(name)?.trim().parse().ok();
    Some(match number("memory.max").zip(number("memory.current")) {
        Some((limit, used)) => {
            let given_up = read("memory.stat").map_or(0, |stat| parse_inactive_file(&stat));
            machine.within(limit, used.saturating_sub(given_up))
        }
        None => machine, // no group, or one without a limit
    })
}

impl Memory {
    /// What is left of it in a group that may take `limit` bytes and has taken `used`.
    fn within(self, limit: u64, used: u64) -> Self {
        Self { total_bytes: self.total_bytes.min(limit), free_bytes: self.free_bytes.min(limit.saturating_sub(used)) }
    }
}

fn parse_meminfo(text: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kibibytes * 1024)
    };
    Some(Memory { total_bytes: bytes("MemTotal")?, free_bytes: bytes("MemAvailable")? })
}

/// The bytes of files that a group keeps in memory, but gives up as soon as somebody wants the room.
fn parse_inactive_file(stat: &str) -> u64 {
    stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_linux_writes_it() {
        let text = "MemTotal:       16384 kB\nMemFree:            1 kB\nMemAvailable:    8192 kB\n";
        let machine = Memory { total_bytes: 16 << 20, free_bytes: 8 << 20 };
        assert_eq!(parse_meminfo(text), Some(machine));
        assert_eq!(parse_meminfo("MemTotal: lots\n"), None);
        assert_eq!(machine.within(4 << 20, 1 << 20), Memory { total_bytes: 4 << 20, free_bytes: 3 << 20 });
        assert_eq!(machine.within(64 << 20, 63 << 20).free_bytes, 1 << 20);
        assert_eq!(machine.within(1, 2).free_bytes, 0);
        assert_eq!(parse_inactive_file("anon 1\nactive_file 2\ninactive_file 4096\n"), 4096);
    }
}
