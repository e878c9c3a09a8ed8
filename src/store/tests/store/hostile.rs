//! Bytes from elsewhere never break a decoder, and what is encoded is decoded again.

use orlop_store::command::{Change, Command, Origin};
use orlop_store::consensus::MemberChange;
use orlop_store::peer::{Body, PeerMessage, Proposal, Refusal};
use orlop_store::roster::Roster;
use orlop_store::v2;
use proptest::prelude::*;

use crate::cluster::member;
use crate::random::{Commands, Random};

/// Messages of all kinds but those of consensus, which the simulation sends by the thousand.
fn messages(seed: u64) -> Vec<PeerMessage> {
    let mut random = Random(seed);
    let origin = Origin {
        member: random.next(),
        number: random.next(),
    };
    let command = Commands {
        random: &mut random,
        revision: 9,
        ttl: 5,
    }
    .command();
    let change = Change {
        kind: MemberChange::AddLearner(random.next()),
        promote: random.once_in(2),
        member: member(random.below(9)),
    };
    let number = random.next();
    let bodies = [
        Body::Propose {
            term: number,
            origin,
            proposal: Proposal::Command(command),
        },
        Body::Propose {
            term: number,
            origin,
            proposal: Proposal::Change(change),
        },
        Body::Refuse {
            number,
            reason: Refusal::LearnerNotReady,
        },
        Body::Lease {
            number,
            id: -5,
            renew: true,
        },
        Body::LeaseIs {
            number,
            revision: 7,
            times: Some((3, 9)).filter(|_| random.once_in(2)),
        },
        Body::Part {
            index: number,
            part: 3,
            bytes: vec![7; random.below(50) as usize],
            message: None,
        },
        Body::PartsTaken {
            index: number,
            parts: 4,
        },
        Body::Removed,
    ];
    let message = |body| PeerMessage {
        from: number,
        to: !number,
        body,
    };
    bodies.into_iter().map(message).collect()
}

proptest! {
    #[test]
    fn messages_between_members_are_read_as_they_were_written(seed: u64) {
        for message in messages(seed) {
            prop_assert_eq!(PeerMessage::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn changed_or_cut_messages_are_refused_or_are_other_messages(seed: u64, at: usize, byte: u8, cut: usize) {
        for message in messages(seed) {
            let mut bytes = message.encode();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = PeerMessage::decode(&bytes);
            let cut = cut % bytes.len();
            let _ = PeerMessage::decode(&bytes[..cut]);
        }
    }

    #[test]
    fn noise_is_never_a_reason_to_panic(bytes: Vec<u8>, kind in 0u8..20) {
        let mut framed = vec![0; 16];
        framed.push(kind);
        framed.extend_from_slice(&bytes);
        let _ = PeerMessage::decode(&framed);
        let mut command = vec![1, kind];
        command.extend_from_slice(&bytes);
        let _ = Command::decode(&command);
        let _ = Change::decode(&command);
        let _ = v2::Request::decode(&bytes);
        let _ = Roster::decode(&bytes);
    }

    #[test]
    fn paths_are_clean_and_stay_so(path: String) {
        let clean = v2::clean(&path);
        prop_assert!(clean.starts_with('/'));
        prop_assert!(clean == "/" || !clean.ends_with('/'));
        prop_assert!(!clean.contains("//"));
        prop_assert_eq!(v2::clean(&clean), clean);
    }
}
