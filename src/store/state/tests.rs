//! Cases for the state: commands in, entries and events out.

use super::*;
use crate::store::command::Put;

fn put(key: &str, value: &str) -> Command {
    expiring(key, value, 0)
}

fn expiring(key: &str, value: &str, expires: u64) -> Command {
    Command::Batch { batch: Batch::put(key.to_string(), value.to_string()), expires: vec![expires] }
}

fn delete(key: &str) -> Command {
    Command::Batch { batch: Batch::delete(key.to_string()), expires: vec![] }
}

fn run(commands: impl IntoIterator<Item = Command>) -> (State, Vec<Change>) {
    let mut state = State::default();
    let mut events = Vec::new();
    for command in commands {
        state.apply(&command, &mut events);
    }
    (state, events)
}

fn values(state: &State, revision: u64) -> Vec<String> {
    let (entries, _) = state.range(b"", None, revision, usize::MAX);
    entries.iter().map(|e| format!("{}={}", String::from_utf8_lossy(&e.key), String::from_utf8_lossy(&e.value))).collect()
}

#[test]
fn every_changed_key_takes_a_revision() {
    let mut state = State::default();
    let mut events = Vec::new();
    let put = |key: &'static str| Put { key: key.into(), value: "v".into(), ttl_seconds: None };
    let batch = Batch { puts: vec![put("a"), put("b")], deletes: vec!["a".into(), "none".into()], ..Batch::default() };
    let outcome = state.apply(&Command::Batch { batch, expires: vec![0, 0] }, &mut events);
    assert_eq!(outcome, Outcome::Written(vec![1, 2, 3, 0]));
    assert_eq!(events.iter().map(|e| (e.revision, e.value.is_some())).collect::<Vec<_>>(), [(1, true), (2, true), (3, false)]);
    assert_eq!(state.revision(), 3);
}

#[test]
fn a_failed_check_changes_nothing_and_says_what_is_there() {
    let (mut state, _) = run([put("a", "1")]);
    let mut events = Vec::new();
    for (key, expect, fails) in [
        ("a", Expect::Absent, true),
        ("a", Expect::At(1), false),
        ("a", Expect::At(2), true),
        ("a", Expect::Present, false),
        ("b", Expect::Absent, false),
        ("b", Expect::Present, true),
    ] {
        let conflict = state.conflict(&[Check { key: key.into(), expect }]);
        assert_eq!(conflict.is_some(), fails, "{key} {expect:?}");
    }
    let batch = Batch::put("a", "2").check("a", Expect::Absent);
    let outcome = state.apply(&Command::Batch { batch, expires: vec![0] }, &mut events);
    let current = Some(Entry { key: "a".into(), value: "1".into(), mod_revision: 1, create_revision: 1 });
    assert_eq!(outcome, Outcome::Conflict { key: "a".into(), current });
    assert!(events.is_empty());
    assert_eq!(state.revision(), 1);
}

#[test]
fn history_is_readable_until_compacted() {
    let (mut state, _) = run([put("a", "1"), put("b", "1"), put("a", "2"), delete("b"), put("a", "3")]);
    assert_eq!(values(&state, 2), ["a=1", "b=1"]);
    assert_eq!(values(&state, 3), ["a=2", "b=1"]);
    assert_eq!(values(&state, 4), ["a=2"]);
    assert_eq!(values(&state, 5), ["a=3"]);
    state.apply(&Command::Compact { revision: 4 }, &mut Vec::new());
    assert_eq!(values(&state, 4), ["a=2"]);
    assert_eq!(values(&state, 5), ["a=3"]);
    assert_eq!(state.history_bytes(), 1, "a=2 is all that is left");
    state.apply(&Command::Compact { revision: 5 }, &mut Vec::new());
    assert_eq!((state.history_bytes(), state.keys.len()), (0, 1));
}

#[test]
fn a_pin_keeps_what_compaction_would_take() {
    let (mut state, _) = run([put("a", "1"), put("b", "1")]);
    state.pin(2);
    for command in [put("a", "2"), delete("b"), Command::Compact { revision: 4 }] {
        state.apply(&command, &mut Vec::new());
    }
    assert_eq!(values(&state, 2), ["a=1", "b=1"]);
    state.unpin(2);
    assert_eq!(state.history_bytes(), 0);
    assert_eq!(values(&state, 4), ["a=2"]);
    assert_eq!(state.keys.len(), 1, "the deleted key is gone");
}

#[test]
fn a_key_recreated_is_a_new_key() {
    let (state, events) = run([put("a", "1"), put("a", "2"), delete("a"), put("a", "3")]);
    let entry = state.get(b"a").unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision), (4, 4));
    assert_eq!(events[1].previous.as_ref().unwrap().create_revision, 1);
    assert_eq!(events[3].previous, None);
}

#[test]
fn only_what_is_still_at_its_revision_expires() {
    let (mut state, _) = run([expiring("a", "1", 10), expiring("b", "1", 20), expiring("c", "1", 10)]);
    assert_eq!(state.next_expiry(), Some(10));
    let due = state.due(15, 100);
    assert_eq!(due, [("a".into(), 1), ("c".into(), 3)]);
    state.apply(&expiring("a", "2", 30), &mut Vec::new());
    let mut events = Vec::new();
    state.apply(&Command::Expire { keys: due }, &mut events);
    assert_eq!(events.iter().map(|e| e.key.clone()).collect::<Vec<_>>(), ["c"]);
    assert_eq!(state.next_expiry(), Some(20));
    assert_eq!(state.due(100, 100), [("b".into(), 2), ("a".into(), 4)]);
    state.apply(&put("a", "3"), &mut Vec::new());
    state.apply(&delete("b"), &mut Vec::new());
    assert_eq!(state.next_expiry(), None, "a put without a TTL and a delete take it away");
}

#[test]
fn pages_and_counts() {
    let keys = ["g\0r\0a\x001", "g\0r\0a\x002", "g\0r\0b\x001", "g\0s\0a\x001"];
    let (state, _) = run(keys.map(|key| put(key, "v")));
    let (page, more) = state.range(b"g\0r\0", None, 4, 2);
    assert!(more);
    let (rest, more) = state.range(b"g\0r\0", Some(&page[1].key), 4, 2);
    assert_eq!((rest.len(), more, &rest[0].key[..]), (1, false, keys[2].as_bytes()));
    for (prefix, count) in [("", 4), ("g\0r\0", 3), ("g\0s\0", 1), ("g\0r\0a\0", 2), ("g\0x\0", 0)] {
        assert_eq!(state.count(prefix.as_bytes()), count, "{prefix:?}");
    }
    assert_eq!(state.tallies().len(), 2);
}

#[test]
fn jumping_leaves_no_revision_to_be_issued_twice() {
    let (mut state, _) = run([put("a", "1"), Command::Jump { revision: 100 }]);
    assert_eq!((state.revision(), state.compacted()), (100, 100));
    let mut events = Vec::new();
    state.apply(&put("a", "2"), &mut events);
    assert_eq!(events[0].revision, 101);
}

#[test]
fn rows_restore_the_state() {
    let (state, _) = run([put("a", "1"), expiring("b", "1", 9), put("a", "2"), delete("x")]);
    let (rows, next) = state.rows(None, 3, 0, 10);
    assert_eq!(next, None);
    let restored = State::restore(3, rows);
    assert_eq!(values(&restored, 3), ["a=2", "b=1"]);
    assert_eq!((restored.compacted(), restored.next_expiry(), restored.live()), (3, Some(9), state.live()));
    assert_eq!(restored.get(b"a"), state.get(b"a"));
    let (rows, _) = state.rows(None, 3, 2, 10);
    assert_eq!(rows.len(), 1, "only what is newer than the last checkpoint");
}
