//! What becomes of a machine whose PID 1 panics: a line in the log, and a reboot after a delay.

use std::time::Duration;

/// Time to read the line where the command line has no `panic=`.
const DELAY: Duration = Duration::from_secs(10);

/// Makes a panic anywhere in PID 1 a line `panic: …` with its place in the kernel's log, then a reboot; with `orlop.rescue` on
/// the kernel command line a shell on the console comes before that.
///
/// The hook never returns: the end of PID 1 would be a kernel panic.
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
        orlop_boot::failure::restart("panic", &format!("{text}{place}"), DELAY)
    }));
}
