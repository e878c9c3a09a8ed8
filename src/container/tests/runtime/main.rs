//! Containers on a real kernel: what a program inside sees, and what a hostile image cannot do.
//!
//! A container is started by a process with one thread, which a test harness is not, so this program has its own harness:
//! each test runs this program anew as the runtime. Needs root; says so and passes where it is not.

mod hostile;
mod inside;
mod world;

use std::process::ExitCode;

/// A test and its name.
type Test = (&'static str, fn());

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [word, job] = words.as_slice()
        && word == world::RUNTIME
    {
        return world::be_the_runtime(job.as_ref());
    }
    if !nix::unistd::Uid::effective().is_root() {
        println!("skipped: containers need root");
        return ExitCode::SUCCESS;
    }
    let wanted = words.iter().find(|w| !w.starts_with('-'));
    let mut failed = 0;
    for (name, test) in inside::TESTS.iter().chain(hostile::TESTS) {
        if wanted.is_some_and(|w| !name.contains(w.as_str())) {
            continue;
        }
        let passed = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
