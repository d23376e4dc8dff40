//! The executable.
fn main() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "shim") {
        // Before any thread exists: the shim forks.
        coracle::runtime::shim::main(arguments);
    }
}
