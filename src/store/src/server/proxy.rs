//! A machine without a member: its clients are passed on to members, until it becomes one itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::bootstrap::First;
use super::join::{Answer, Joining, own_urls};
use super::peers::{self, open_tunnel};
use super::tls::{Io, PeerTls, accept_client};
use super::token::Token;
use super::{ClientListener, Settings};
use crate::proto::etcdserverpb::Member;
use crate::state::Genesis;

/// Pause between two questions whether there is a place for a member now.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Pause after a failure to accept a client.
const PAUSE: Duration = Duration::from_millis(200);

/// The members, the one that answered last first.
#[derive(Debug, Default)]
struct Members(Mutex<Vec<Member>>);

impl Members {
    fn all(&self) -> Vec<Member> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set(&self, members: Vec<Member>) {
        if !members.is_empty() {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = members;
        }
    }

    fn prefer(&self, id: u64) {
        let mut members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        members.sort_by_key(|m| m.id != id);
    }
}

/// Passes clients on until this machine is let in as a member.
pub(super) async fn serve(
    settings: &Settings,
    joining: &Joining,
    tls: &Option<PeerTls>,
    listeners: &[ClientListener],
    members: Vec<Member>,
) -> First {
    let known = Arc::new(Members(Mutex::new(members)));
    let tasks: Vec<_> = listeners
        .iter()
        .map(|(listener, client_tls)| {
            let way = Way {
                known: Arc::clone(&known),
                token: joining.token.clone(),
                tls: tls.clone(),
                client_tls: client_tls.clone(),
            };
            tokio::spawn(accept(Arc::clone(listener), Arc::new(way)))
        })
        .collect();
    let first = ask_for_a_place(settings, joining, tls.as_ref(), &known).await;
    // Clients that are connected keep their way; new ones are the member's.
    for task in tasks {
        task.abort();
    }
    first
}

async fn ask_for_a_place(
    settings: &Settings,
    joining: &Joining,
    tls: Option<&PeerTls>,
    known: &Members,
) -> First {
    loop {
        tokio::time::sleep(ASK_AGAIN).await;
        let said = Member {
            name: settings.name.clone(),
            peer_ur_ls: own_urls(settings, joining),
            machine: joining.machine.clone(),
            ..Member::default()
        };
        let mut urls: Vec<String> = known
            .all()
            .iter()
            .flat_map(|m| m.peer_ur_ls.clone())
            .collect();
        urls.extend(joining.seeds.clone());
        for url in &urls {
            let Ok(told) = peers::ask_to_join(url, tls, &joining.token, &said, 0).await else {
                continue;
            };
            if let Answer::Member(member) = told.answer {
                log::info!("there is a place: this machine becomes member {member:x}");
                let genesis = Genesis {
                    cluster: told.cluster,
                    member,
                    members: Vec::new(),
                };
                return First {
                    genesis,
                    others: told.members,
                };
            }
            known.set(told.members);
            break;
        }
    }
}

/// How clients get to a member.
struct Way {
    known: Arc<Members>,
    token: Token,
    tls: Option<PeerTls>,
    client_tls: Option<TlsAcceptor>,
}

async fn accept(listener: Arc<TcpListener>, way: Arc<Way>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let way = Arc::clone(&way);
                tokio::spawn(async move {
                    let _ = client.set_nodelay(true);
                    let client = match &way.client_tls {
                        None => Ok(Io::Plain(client)),
                        Some(tls) => accept_client(tls, client).await,
                    };
                    match client {
                        Ok(client) => way.pass_on(client).await,
                        Err(err) => log::debug!("a client's TLS: {err}"),
                    }
                });
            }
            Err(err) => {
                log::warn!("accept a client: {err}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

impl Way {
    async fn pass_on(&self, mut client: Io) {
        for member in self.known.all() {
            let tunnel = open_tunnel(&member.peer_ur_ls, self.tls.as_ref(), &self.token).await;
            match tunnel {
                Ok(mut tunnel) => {
                    self.known.prefer(member.id);
                    // Either end may break at any time; the other one sees it.
                    let _ = copy_bidirectional(&mut client, &mut tunnel).await;
                    return;
                }
                Err(err) => log::warn!("pass a client on to member {:x}: {err}", member.id),
            }
        }
    }
}
