//! Leads the scheduler while a lease lives, or waits until nobody does.

use std::time::Instant;

use super::{ROUND, Shared, back_off, chain};
use crate::client::{ClientError, Condition, Write};
use crate::engine::{Batch, Engine};
use crate::keys::{FENCE, Key, LEADER};

/// Why leading has ended.
#[derive(Debug, thiserror::Error)]
enum Deposed {
    #[error("the store")]
    Client(#[from] ClientError),
    #[error("the lease has ended")]
    Lease,
    #[error("another machine has written placements")]
    Contested,
    #[error("the store is out of reach")]
    Unsynced,
}

/// A term of leading.
struct Term {
    lease: i64,
    /// The revision at which the leader's key was made: later leaders have later ones.
    created: i64,
}

/// Leads whenever nobody else does.
pub(super) async fn campaign(shared: &Shared) {
    let mut changes = shared.subscribe();
    let mut failures = 0;
    loop {
        let vacant = {
            let state = shared.state();
            state.synced && state.registry.leader.is_none()
        };
        if !vacant {
            // The sender lives as long as `shared`.
            let _ = changes.changed().await;
            continue;
        }
        match elect(shared).await {
            Ok(Some(term)) => {
                failures = 0;
                log::info!("leading the scheduler");
                shared.engine_metrics.leads(true);
                let deposed = lead(shared, &term).await;
                shared.engine_metrics.leads(false);
                log::warn!("not leading the scheduler any more: {}", chain(&deposed));
                // What cannot be ended now ends by itself.
                let _ = shared.client.revoke(term.lease).await;
            }
            Ok(None) => {}
            Err(err) => log::warn!("cannot stand for election: {}", chain(&err)),
        }
        back_off(&mut failures).await;
    }
}

async fn elect(shared: &Shared) -> Result<Option<Term>, ClientError> {
    let lease = shared
        .client
        .grant(shared.settings.timing.leader_ttl)
        .await?;
    let absent = [Condition::Absent(LEADER.to_owned())];
    let put = [Write::Put(LEADER.to_owned(), shared.id.to_string(), lease)];
    match shared.client.transact(&absent, &put).await {
        Ok((true, created)) => Ok(Some(Term { lease, created })),
        Ok((false, _)) => {
            let _ = shared.client.revoke(lease).await;
            Ok(None)
        }
        Err(err) => Err(err),
    }
}

async fn lead(shared: &Shared, term: &Term) -> Deposed {
    let mut changes = shared.subscribe();
    let mut beat = tokio::time::interval(shared.settings.timing.leader_ttl / 5);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The registry must have seen our own key, and with it all that an earlier leader wrote.
    let mut behind = term.created;
    let mut engine: Option<(u64, Engine)> = None;
    loop {
        tokio::select! {
            _ = beat.tick() => match shared.client.keep_alive(term.lease).await {
                Ok(true) => shared.heard_store(true),
                Ok(false) => return Deposed::Lease,
                Err(err) => {
                    shared.heard_store(false);
                    return err.into();
                }
            },
            _ = changes.changed() => tokio::time::sleep(ROUND).await,
        }
        let begun = Instant::now();
        let batches = {
            let mut state = shared.state();
            if !state.synced {
                return Deposed::Unsynced;
            }
            if state.revision < behind {
                continue;
            }
            let unseen = std::mem::take(&mut state.unseen);
            let readings = state.readings;
            let (_, engine) = match &mut engine {
                Some(current) if current.0 == readings => {
                    for change in &unseen {
                        current.1.changed(&state.registry, change);
                    }
                    current
                }
                _ => engine.insert((readings, Engine::new(&state.registry))),
            };
            engine.decide(&state.registry)
        };
        let mut result = Ok(());
        for batch in batches {
            match write(shared, term, &batch).await {
                Ok(Some(revision)) => behind = behind.max(revision),
                Ok(None) => result = Err(Deposed::Contested),
                Err(err) => result = Err(err.into()),
            }
            for (key, value) in &batch.writes {
                if matches!(Key::parse(key), Some(Key::Placement(..))) {
                    let metrics = &shared.engine_metrics;
                    metrics.task(value.is_some(), result.is_ok());
                }
            }
            if result.is_err() {
                break;
            }
        }
        shared.engine_metrics.pass(result.is_ok(), begun.elapsed());
        if let Err(deposed) = result {
            return deposed;
        }
    }
}

/// Writes a batch; the revision, or nothing when somebody else leads.
async fn write(shared: &Shared, term: &Term, batch: &Batch) -> Result<Option<i64>, ClientError> {
    let fence = match batch.fence_before {
        0 => Condition::Absent(FENCE.to_owned()),
        fence => Condition::Value(FENCE.to_owned(), fence.to_string()),
    };
    let conditions = [Condition::CreatedAt(LEADER.to_owned(), term.created), fence];
    let writes: Vec<Write> = batch
        .writes
        .iter()
        .map(|(key, value)| match value {
            Some(value) => Write::Put(key.clone(), value.clone(), 0),
            None => Write::Delete(key.clone()),
        })
        .collect();
    let (done, revision) = shared.client.transact(&conditions, &writes).await?;
    if done {
        for words in &batch.words {
            log::info!("{words}");
        }
    }
    Ok(done.then_some(revision))
}
