//! The executable. `coracle shim` is taken out before anything else: it must find a process with one thread and nothing set up.

#![allow(unsafe_code)] // mallopt

use std::process::ExitCode;

/// glibc makes up to eight arenas a core, each of which keeps what its busiest moment needed.
const ARENAS_MAX: libc::c_int = 2;

fn main() -> ExitCode {
    // SAFETY: there is one thread yet, and mallopt takes plain numbers.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX) };
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "shim") {
        coracle::runtime::shim::main(arguments);
    }
    coracle::cli::main()
}
