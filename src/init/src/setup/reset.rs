//! A factory reset that was asked for, before anything uses `/var` (`docs/install.md`).

use orlop_boot::modprobe::chain;
use orlop_update::reset;

use super::Setup;

/// Removes what the mark on `/var` or the kernel command line says, once a start.
pub(super) fn apply(setup: &mut Setup) {
    let word = setup.command_line.value(reset::WORD).map(str::to_owned);
    let (var, run) = (setup.path("/var"), setup.path("/run/orlop"));
    match reset::at_boot(&var, word.as_deref(), &run) {
        Ok(None) => {}
        Ok(Some(done)) => log::warn!(
            "setup: /var was reset as {} asked ({}): {} removed",
            if done.by_command_line {
                "the command line"
            } else {
                "`orlop reset`"
            },
            done.scope,
            done.removed.len()
        ),
        Err(error) => setup.fail(format!("the factory reset: {}", chain(&error))),
    }
}
