//! The executable. `coracle shim` is taken out before anything else: it must find a process with one thread and nothing set up.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "shim") {
        coracle::runtime::shim::main(arguments);
    }
    coracle::cli::main()
}
