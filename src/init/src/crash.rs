//! What becomes of a machine whose PID 1 panics or faults: a line in the log, and another execution that goes on with the saved state.
//! Where there is none, or that crashes again and again, a reboot after a delay.

use std::time::Duration;

use orlop_boot::cmdline::CommandLine;
use orlop_boot::failure;
use orlop_sys::kmsg::{self, Priority};

/// Time to read the line where the command line has no `panic=`.
const DELAY: Duration = Duration::from_secs(10);

/// Makes a panic anywhere in PID 1 a line `panic: …` with its place in the kernel's log, then another execution
/// of PID 1 with the state that it had, or else a reboot; with `orlop.rescue` on
/// the kernel command line a shell on the console comes before that.
///
/// A fault (`SIGSEGV`, `abort(3)`, …) does the same without the shell. None of it returns: the end of PID 1 would be a kernel panic.
pub fn install() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic
            .payload()
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.payload().downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "without a message".to_owned());
        let place = panic
            .location()
            .map_or_else(String::new, |place| format!(" at {place}"));
        kmsg::write(
            Priority::Critical,
            "orlop",
            &format!("panic: {text}{place}"),
        );
        // Another execution goes on with what was written down, unless that is what makes it panic.
        orlop_sys::crash::resume();
        failure::restart("panic", &format!("{text}{place}"), DELAY)
    }));
    // Without /proc, before the first mount, the delay is ours.
    let delay = failure::delay(&CommandLine::read().unwrap_or_default(), DELAY);
    if let Err(error) =
        orlop_sys::crash::install(u32::try_from(delay.as_secs()).unwrap_or(u32::MAX))
    {
        let text = format!("crash: faults of PID 1 are not handled: {error}");
        kmsg::write(Priority::Warning, "orlop", &text);
    }
}
