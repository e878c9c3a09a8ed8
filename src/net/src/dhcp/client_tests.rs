//! The client in simulated time against simulated servers.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::message::option as o;
use super::*;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
/// A lease of an hour: T1 at 1800 s, T2 at 3150 s.
const HOUR: u32 = 3600;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn reply(kind: MessageType, xid: u32, address: Ipv4Addr, server: Ipv4Addr, lease: u32) -> Reply {
    let mut options = BTreeMap::new();
    options.insert(o::SERVER, server.octets().to_vec());
    if kind != MessageType::Nak {
        options.insert(o::LEASE_TIME, lease.to_be_bytes().to_vec());
        options.insert(o::SUBNET_MASK, vec![255, 255, 255, 0]);
    }
    Reply {
        kind,
        xid,
        address,
        mac: [2, 0, 0, 0, 0, 1],
        options,
    }
}

/// A client, its clock and its dice: a middle value, so that delays are exact, and numbers that grow.
struct Bench {
    client: Client,
    now: Duration,
    dice: u32,
    sent: Vec<(Duration, Action)>,
}

impl Bench {
    fn new() -> Self {
        Self {
            client: Client::new(),
            now: seconds(1000),
            dice: 1000,
            sent: Vec::new(),
        }
    }

    fn step(&mut self, input: Input<'_>) -> Vec<Action> {
        let dice = &mut self.dice;
        // Every number leaves 1000 modulo 2001: no jitter, and each exchange another xid.
        let actions = self.client.step(input, self.now, &mut || {
            *dice += 2001;
            *dice
        });
        self.sent
            .extend(actions.iter().map(|action| (self.now, action.clone())));
        actions
    }

    /// Lets time pass to the client's next deadline.
    fn wait(&mut self) -> Vec<Action> {
        let deadline = self.client.deadline().expect("something is due");
        assert!(deadline >= self.now);
        self.now = deadline;
        self.step(Input::Deadline)
    }

    fn answer(&mut self, kind: MessageType, address: Ipv4Addr, server: Ipv4Addr) -> Vec<Action> {
        let reply = reply(kind, self.client.xid, address, server, HOUR);
        self.step(Input::Reply(&reply))
    }

    /// A client that has just got its lease.
    fn bound() -> Self {
        let mut bench = Self::new();
        bench.step(Input::Carrier { known: None });
        bench.answer(MessageType::Offer, ADDRESS, SERVER);
        let actions = bench.answer(MessageType::Ack, ADDRESS, SERVER);
        assert!(matches!(&actions[..], [Action::Use(lease)] if lease.address == ADDRESS));
        bench
    }
}

fn request(action: &Action) -> &Request {
    match action {
        Action::Broadcast(request) | Action::Unicast { request, .. } => request,
        other => panic!("{other:?} is no message"),
    }
}

#[test]
fn an_address_is_got_in_four_messages() {
    let mut bench = Bench::new();
    let discover = bench.step(Input::Carrier { known: None });
    let [Action::Broadcast(discover)] = &discover[..] else {
        panic!("{discover:?}")
    };
    assert_eq!(
        (discover.kind, discover.client_address, discover.server),
        (MessageType::Discover, None, None)
    );
    let asked = bench.answer(MessageType::Offer, ADDRESS, SERVER);
    let [Action::Broadcast(asked)] = &asked[..] else {
        panic!("{asked:?}")
    };
    // RFC 2131 table 4, SELECTING: ciaddr zero, server identifier and requested address MUST be there.
    assert_eq!(
        (asked.kind, asked.xid),
        (MessageType::Request, discover.xid)
    );
    assert_eq!(
        (asked.client_address, asked.requested, asked.server),
        (None, Some(ADDRESS), Some(SERVER))
    );
    bench.answer(MessageType::Ack, ADDRESS, SERVER);
    assert_eq!(bench.client.lease().map(|l| l.address), Some(ADDRESS));
    assert_eq!(bench.client.deadline(), Some(seconds(1000 + 1800)));
}

#[test]
fn a_silent_network_is_asked_with_growing_pauses() {
    let mut bench = Bench::new();
    bench.step(Input::Carrier { known: None });
    for _ in 0..7 {
        bench.wait();
    }
    // RFC 2131 §4.1: 4, 8, 16, 32 and then 64 seconds.
    let times: Vec<u64> = bench
        .sent
        .iter()
        .map(|(at, _)| at.as_secs() - 1000)
        .collect();
    assert_eq!(times, [0, 4, 12, 28, 60, 124, 188, 252]);
    assert!(
        bench
            .sent
            .iter()
            .all(|(_, a)| request(a).kind == MessageType::Discover)
    );
    assert_eq!(request(&bench.sent[3].1).seconds, 28);
}

#[test]
fn pauses_differ_by_at_most_a_second() {
    for dice in [0, 1, 1000, 2000, 2001, u32::MAX] {
        for sent in [0, 3, 4, 40, u32::MAX] {
            let middle = 4 * (1u64 << sent.min(4));
            let delay = delay(sent, dice);
            assert!(
                delay >= seconds(middle - 1) && delay <= seconds(middle + 1),
                "{delay:?}"
            );
        }
    }
}

#[test]
fn a_server_that_offers_and_then_is_silent_is_left_for_another() {
    let mut bench = Bench::new();
    bench.step(Input::Carrier { known: None });
    bench.answer(MessageType::Offer, ADDRESS, SERVER);
    let first = bench.client.xid;
    let kinds: Vec<MessageType> = (0..4).map(|_| request(&bench.wait()[0]).kind).collect();
    assert_eq!(
        kinds,
        [
            MessageType::Request,
            MessageType::Request,
            MessageType::Request,
            MessageType::Discover
        ]
    );
    assert_ne!(bench.client.xid, first);
    // What the first server says now is too late.
    let late = reply(MessageType::Ack, first, ADDRESS, SERVER, HOUR);
    assert_eq!(bench.step(Input::Reply(&late)), []);
}

#[test]
fn only_the_chosen_server_is_heard() {
    let mut bench = Bench::new();
    bench.step(Input::Carrier { known: None });
    bench.answer(MessageType::Offer, ADDRESS, SERVER);
    let other = Ipv4Addr::new(10, 0, 0, 2);
    assert_eq!(bench.answer(MessageType::Nak, ADDRESS, other), []);
    assert_eq!(
        bench.answer(MessageType::Ack, Ipv4Addr::new(10, 0, 0, 77), other),
        []
    );
    assert_eq!(bench.answer(MessageType::Offer, ADDRESS, other), []);
    assert!(matches!(
        bench.answer(MessageType::Ack, ADDRESS, SERVER)[..],
        [Action::Use(_)]
    ));
}

#[test]
fn a_lease_is_renewed_at_t1_with_its_server() {
    let mut bench = Bench::bound();
    let actions = bench.wait();
    assert_eq!(bench.now, seconds(2800));
    let [Action::Unicast { request, from, to }] = &actions[..] else {
        panic!("{actions:?}")
    };
    // RFC 2131 table 4, RENEWING: ciaddr filled, neither server identifier nor requested address.
    assert_eq!(
        (request.client_address, request.requested, request.server),
        (Some(ADDRESS), None, None)
    );
    assert_eq!((*from, *to), (ADDRESS, SERVER));
    bench.now += seconds(3);
    assert!(matches!(
        bench.answer(MessageType::Ack, ADDRESS, SERVER)[..],
        [Action::Use(_)]
    ));
    // The new time counts from when it was asked for, not from the answer.
    assert_eq!(bench.client.deadline(), Some(seconds(2800 + 1800)));
}

#[test]
fn a_silent_server_costs_the_address_only_at_the_end_of_the_lease() {
    let mut bench = Bench::bound();
    bench.sent.clear();
    while bench.client.lease().is_some() {
        bench.wait();
    }
    assert_eq!(bench.now, seconds(1000 + 3600));
    let unicast: Vec<u64> = bench
        .sent
        .iter()
        .filter(|(_, a)| matches!(a, Action::Unicast { .. }))
        .map(|(at, _)| at.as_secs() - 1000)
        .collect();
    // Half of what is left until T2, not less than a minute (RFC 2131 §4.4.5).
    assert_eq!(unicast, [1800, 2475, 2812, 2981, 3065, 3125]);
    let rebinds: Vec<u64> = bench
        .sent
        .iter()
        .filter(|(_, a)| matches!(a, Action::Broadcast(r) if r.client_address == Some(ADDRESS)))
        .map(|(at, _)| at.as_secs() - 1000)
        .collect();
    assert_eq!(rebinds, [3150, 3375, 3487, 3547]);
    let end: Vec<&Action> = bench
        .sent
        .iter()
        .filter(|(at, _)| *at == bench.now)
        .map(|(_, a)| a)
        .collect();
    assert!(
        matches!(&end[..], [Action::Drop(lease), Action::Broadcast(r)] if lease.address == ADDRESS && r.kind == MessageType::Discover)
    );
}

#[test]
fn any_server_may_answer_while_rebinding() {
    let mut bench = Bench::bound();
    while !matches!(bench.client.state, State::Rebinding) {
        bench.wait();
    }
    let other = Ipv4Addr::new(10, 0, 0, 2);
    let actions = bench.answer(MessageType::Ack, ADDRESS, other);
    assert!(matches!(&actions[..], [Action::Use(lease)] if lease.server == other));
}

#[test]
fn a_refusal_takes_the_address_and_starts_again() {
    let mut bench = Bench::bound();
    bench.wait();
    let actions = bench.answer(MessageType::Nak, ADDRESS, SERVER);
    assert!(
        matches!(&actions[..], [Action::Refused { .. }, Action::Drop(_), Action::Broadcast(r)] if r.kind == MessageType::Discover)
    );
}

#[test]
fn a_server_that_always_refuses_is_asked_with_growing_pauses() {
    let mut bench = Bench::new();
    bench.step(Input::Carrier { known: None });
    let mut pauses = Vec::new();
    for _ in 0..6 {
        bench.answer(MessageType::Offer, ADDRESS, SERVER);
        let before = bench.now;
        if bench.answer(MessageType::Nak, ADDRESS, SERVER).len() == 1 {
            bench.wait();
        }
        pauses.push((bench.now - before).as_secs());
    }
    assert_eq!(pauses, [0, 4, 8, 16, 32, 64]);
}

#[test]
fn a_cable_that_comes_back_is_asked_whether_the_address_is_still_good() {
    let mut bench = Bench::bound();
    assert_eq!(bench.step(Input::NoCarrier), []);
    assert_eq!(bench.client.lease().map(|l| l.address), Some(ADDRESS));
    bench.now += seconds(60);
    let actions = bench.step(Input::Carrier { known: None });
    let [Action::Broadcast(request)] = &actions[..] else {
        panic!("{actions:?}")
    };
    // RFC 2131 table 4, INIT-REBOOT: server identifier MUST NOT, requested address MUST be filled in, ciaddr zero.
    assert_eq!(
        (request.client_address, request.requested, request.server),
        (None, Some(ADDRESS), None)
    );
    // Another network's server is silent: look for a new address, keep the old one until there is one.
    bench.wait();
    let actions = bench.wait();
    assert_eq!(
        super::tests::request(&actions[0]).kind,
        MessageType::Discover
    );
    assert!(bench.client.lease().is_some());
    let new = Ipv4Addr::new(10, 0, 0, 33);
    bench.answer(MessageType::Offer, new, SERVER);
    assert!(
        matches!(&bench.answer(MessageType::Ack, new, SERVER)[..], [Action::Use(lease)] if lease.address == new)
    );
}

#[test]
fn a_lease_ends_without_a_carrier_too() {
    let mut bench = Bench::bound();
    bench.step(Input::NoCarrier);
    assert!(matches!(bench.wait()[..], [Action::Drop(_)]));
    assert_eq!(bench.now, seconds(4600));
    assert_eq!(bench.client.deadline(), None);
}

#[test]
fn a_restarted_role_goes_on_with_the_lease_that_it_kept() {
    let kept = Bench::bound().client.lease().cloned();
    let mut bench = Bench::new();
    bench.now = seconds(1500);
    let actions = bench.step(Input::Carrier {
        known: kept.clone(),
    });
    assert!(
        matches!(&actions[..], [Action::Use(_), Action::Broadcast(r)] if r.requested == Some(ADDRESS))
    );
    let mut bench = Bench::new();
    bench.now = seconds(9000);
    let actions = bench.step(Input::Carrier { known: kept });
    assert!(matches!(&actions[..], [Action::Broadcast(r)] if r.kind == MessageType::Discover));
}

#[test]
fn an_address_in_use_is_declined_and_not_asked_for_again_at_once() {
    let mut bench = Bench::bound();
    let actions = bench.step(Input::AddressInUse);
    let [Action::Broadcast(decline), Action::Drop(_)] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(
        (decline.kind, decline.requested, decline.server),
        (MessageType::Decline, Some(ADDRESS), Some(SERVER))
    );
    assert_eq!(request(&bench.wait()[0]).kind, MessageType::Discover);
    assert_eq!(bench.now, seconds(1010));
}

#[test]
fn a_lease_for_ever_needs_nothing_more() {
    let mut bench = Bench::new();
    bench.step(Input::Carrier { known: None });
    bench.answer(MessageType::Offer, ADDRESS, SERVER);
    let ack = reply(
        MessageType::Ack,
        bench.client.xid,
        ADDRESS,
        SERVER,
        u32::MAX,
    );
    bench.step(Input::Reply(&ack));
    assert_eq!(bench.client.deadline(), None);
}

/// What may happen to a client.
#[derive(Debug, Clone)]
enum Event {
    Carrier,
    NoCarrier,
    InUse,
    Pass(u64),
    Deadline,
    Reply {
        kind: u8,
        right_xid: bool,
        host: u8,
        server: u8,
        lease: u32,
    },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Carrier),
        Just(Event::NoCarrier),
        Just(Event::InUse),
        (0u64..5000).prop_map(Event::Pass),
        Just(Event::Deadline),
        Just(Event::Deadline),
        (
            1u8..8,
            any::<bool>(),
            0u8..4,
            0u8..3,
            prop_oneof![0u32..10, 60u32..10_000, Just(u32::MAX)]
        )
            .prop_map(|(kind, right_xid, host, server, lease)| Event::Reply {
                kind,
                right_xid,
                host,
                server,
                lease
            }),
        (
            prop_oneof![Just(2u8), Just(5)],
            1u8..3,
            1u8..2,
            60u32..10_000
        )
            .prop_map(|(kind, host, server, lease)| Event::Reply {
                kind,
                right_xid: true,
                host,
                server,
                lease
            }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn whatever_happens_the_client_keeps_its_promises(events in proptest::collection::vec(event(), 0..60), seed in any::<u32>()) {
        let mut client = Client::new();
        let mut now = seconds(10);
        let mut dice = seed;
        let mut has_carrier = false;
        let mut used: Option<Lease> = None;
        for event in events {
            let kinds = [MessageType::Discover, MessageType::Offer, MessageType::Request, MessageType::Decline, MessageType::Ack, MessageType::Nak, MessageType::Release];
            let message;
            let input = match event {
                Event::Carrier => { has_carrier = true; Input::Carrier { known: None } }
                Event::NoCarrier => { has_carrier = false; Input::NoCarrier }
                Event::InUse => Input::AddressInUse,
                Event::Pass(n) => { now += seconds(n); Input::Deadline }
                Event::Deadline => { now = client.deadline().unwrap_or(now).max(now); Input::Deadline }
                Event::Reply { kind, right_xid, host, server, lease } => {
                    let xid = if right_xid { client.xid } else { client.xid ^ 1 };
                    message = reply(kinds[usize::from(kind - 1)], xid, Ipv4Addr::new(10, 0, 0, host), Ipv4Addr::new(10, 0, 0, server), lease);
                    Input::Reply(&message)
                }
            };
            let is_idle_input = matches!(input, Input::Deadline);
            let actions = client.step(input, now, &mut || { dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223); dice });
            prop_assert!(actions.len() <= 4);
            for action in actions {
                match action {
                    Action::Use(lease) => used = Some(*lease),
                    // Nothing is dropped that was not in use, and never another one.
                    Action::Drop(lease) => prop_assert_eq!(used.take(), Some(*lease)),
                    Action::Broadcast(r) => {
                        prop_assert!(has_carrier || r.kind == MessageType::Decline);
                        prop_assert!(r.client_address.is_none() || r.client_address == used.as_ref().map(|l| l.address));
                    }
                    Action::Unicast { from, .. } => prop_assert_eq!(Some(from), used.as_ref().map(|l| l.address)),
                    Action::Refused { .. } => {}
                }
            }
            prop_assert_eq!(client.lease(), used.as_ref());
            // An ended lease is not held, a client with a carrier always has something to do unless its lease is for ever, and a deadline that
            // was served lies ahead.
            prop_assert!(used.as_ref().and_then(Lease::ends).is_none_or(|end| end > now));
            if has_carrier {
                prop_assert!(client.deadline().is_some() || used.as_ref().is_some_and(|l| l.lease_seconds.is_none()));
            }
            if is_idle_input {
                prop_assert!(client.deadline().is_none_or(|at| at > now));
            }
        }
    }
}
