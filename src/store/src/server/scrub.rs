//! The member looks at all of its state, slowly, once a day: what is damaged on the disk is found before it is needed.

use std::sync::Weak;
use std::time::Duration;

use super::refetch;
use super::shared::Shared;
use crate::mvcc::Scrub;

/// Records that are looked at at once, and the pause before the next ones: a million keys take some minutes.
const RECORDS: usize = 500;
const PAUSE: Duration = Duration::from_millis(50);
/// Time from the end of one look to the beginning of the next.
const EVERY: Duration = Duration::from_secs(24 * 3600);

/// Looks at the state as long as the server lives.
pub(super) fn run(shared: &Weak<Shared>) {
    loop {
        let mut scrub = Scrub::default();
        while scrub != Scrub::Done {
            std::thread::sleep(PAUSE);
            let Some(shared) = shared.upgrade() else {
                return;
            };
            let looked = shared
                .reader()
                .and_then(|reader| scrub.step(&reader, RECORDS));
            if let Err(err) = looked {
                if err.is_damage() {
                    log::error!("the state is damaged: {err}");
                    refetch::met(&err);
                } else {
                    log::warn!("the look at the whole state broke off: {err}");
                }
                break;
            }
        }
        std::thread::sleep(EVERY);
    }
}
