//! What the C library's allocator keeps for itself.

#![allow(unsafe_code)] // mallopt, malloc_trim

/// glibc makes up to eight arenas a core, each of which keeps what its busiest moment needed.
const ARENAS_MAX: libc::c_int = 2;

/// To be called before there is a second thread.
pub fn limit_arenas() {
    // SAFETY: takes plain numbers.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX) };
}

/// Gives pages without anything in them back to the kernel. By itself the allocator does that only at the end of an arena, and
/// something that lasts is always there. Others may wait for an arena meanwhile (a millisecond where there is nothing, 30 to 45 ms for 200
/// MB in small pieces): for when much became free at once, every few minutes.
pub fn give_back() {
    // SAFETY: takes a plain number, and locks each arena itself.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn what_became_free_between_things_that_last_goes_back() {
        const EACH: usize = 16 << 10;
        let mut all: Vec<Vec<u8>> = (0..8192).map(|_| vec![1; EACH]).collect();
        let mut i = 0;
        all.retain(|_| {
            i += 1;
            i % 64 == 0
        });
        let before = resident_kib();
        give_back();
        let after = resident_kib();
        // Of 128 MiB, 126 are free; other tests run beside this one.
        assert!(after + (32 << 10) < before, "{before} KiB, then {after}");
        assert_eq!(all.len(), 128);
    }
}
