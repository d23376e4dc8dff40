//! The executable. `coracle shim` is taken out before anything else: it must find a process with one thread and nothing set up.
//! So is `coracle hold`, which is to stay as small as that.

use std::process::ExitCode;

fn main() -> ExitCode {
    coracle::memory::limit_arenas();
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(first) if first == "shim" => coracle::runtime::shim::main(arguments),
        Some(first) if first == coracle::net::dns::holder::COMMAND => coracle::net::dns::holder::main(arguments),
        Some(_) | None => {}
    }
    coracle::cli::main()
}
