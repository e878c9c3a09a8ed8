//! Keeps the registry as the store is.

use super::{Shared, back_off, chain};
use crate::client::ClientError;
use crate::keys::PREFIX;

/// Reads all keys, then follows their changes; again whenever the watch breaks.
pub(super) async fn follow(shared: &Shared) {
    let mut failures = 0;
    loop {
        let broken = match read(shared).await {
            Ok(revision) => {
                failures = 0;
                match watch(shared, revision).await {
                    Ok(never) => match never {},
                    Err(err) => err,
                }
            }
            Err(err) => err,
        };
        {
            let mut state = shared.state();
            if state.synced {
                log::warn!(
                    "the store is out of reach, units run on: {}",
                    chain(&broken)
                );
            }
            state.synced = false;
        }
        shared.changed();
        back_off(&mut failures).await;
    }
}

async fn read(shared: &Shared) -> Result<i64, ClientError> {
    let (keys, revision) = shared.client.read_all(PREFIX).await?;
    {
        let mut state = shared.state();
        state.registry.clear();
        for kv in &keys {
            let key = String::from_utf8_lossy(&kv.key);
            state.registry.apply(&key, Some(&kv.value));
        }
        state.registry.complete();
        state.synced = true;
        state.revision = revision;
        state.readings += 1;
        state.unseen.clear();
    }
    log::info!("read {} keys at revision {revision}", keys.len());
    shared.changed();
    Ok(revision)
}

async fn watch(shared: &Shared, revision: i64) -> Result<std::convert::Infallible, ClientError> {
    let mut watch = shared.client.watch(PREFIX, revision + 1).await?;
    loop {
        let (events, revision) = watch.next().await?;
        {
            let mut state = shared.state();
            for event in events {
                // mvccpb.Event.EventType: DELETE is 1.
                let deleted = event.r#type == 1;
                let Some(kv) = event.kv else {
                    continue;
                };
                let key = String::from_utf8_lossy(&kv.key);
                let value = (!deleted).then_some(kv.value.as_slice());
                if let Some(change) = state.registry.apply(&key, value) {
                    state.unseen.push(change);
                } else {
                    log::warn!("the key {key:?} means nothing to this version");
                }
            }
            state.revision = state.revision.max(revision);
        }
        shared.changed();
    }
}
