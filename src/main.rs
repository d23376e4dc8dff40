//! The executable. `coracle shim` is taken out before anything else: it must find a process with one thread and nothing set up.
//! So is `coracle hold`, which is to stay as small as that.

#![allow(unsafe_code)] // mallopt

use std::process::ExitCode;

/// glibc makes up to eight arenas a core, each of which keeps what its busiest moment needed.
const ARENAS_MAX: libc::c_int = 2;

fn main() -> ExitCode {
    // SAFETY: there is one thread yet, and mallopt takes plain numbers.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX) };
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(first) if first == "shim" => coracle::runtime::shim::main(arguments),
        Some(first) if first == coracle::net::dns::holder::COMMAND => coracle::net::dns::holder::main(arguments),
        Some(_) | None => {}
    }
    coracle::cli::main()
}
