//! Pure: one raft entry — what may happen to the state — and its encoding in the log and on the wire.
//!
//! A command carries everything `state` needs to apply it the same way everywhere: the proposer supplies time (as an
//! absolute expiry) and nothing is decided by a clock later. Values keep their own allocation, so the log window, the
//! state and the watch ring share one copy. Start at [`Command`].

use std::fmt;

use bytes::Bytes;

/// A precondition of a [`Batch`]: all hold or nothing happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub key: Bytes,
    pub expect: Expect,
}

/// What a [`Check`] wants of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Absent,
    /// The revision of the key's last write.
    At(u64),
    Present,
}

/// One key to write. A key with `ttl_seconds` is deleted, with a watch event, that long after the write was proposed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    pub key: Bytes,
    pub value: Bytes,
    pub ttl_seconds: Option<u32>,
}

/// The one write primitive: all of it or none of it, each changed key with a revision of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub checks: Vec<Check>,
    pub puts: Vec<Put>,
    pub deletes: Vec<Bytes>,
    pub durability: Durability,
}

/// What an acknowledged write outlives, where there is one voter; with more, all of them are [`Durability::Now`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Worth nothing once the next one came (node leases): stays in memory until something else is written. Lost if the
    /// process is killed.
    Heartbeat,
    /// Outlives the process; a power cut within the next minute loses it (events).
    Soon,
    /// Outlives a power cut.
    #[default]
    Now,
}

/// What may be lost of some entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Relaxed {
    /// How many revisions.
    pub changes: usize,
    /// Of the strictest entry; not [`Durability::Now`].
    pub durability: Durability,
}

impl Relaxed {
    pub(crate) const NOTHING: Relaxed = Relaxed { changes: 0, durability: Durability::Heartbeat };

    pub(crate) fn and(self, other: Relaxed) -> Relaxed {
        Relaxed { changes: self.changes + other.changes, durability: self.durability.max(other.durability) }
    }
}

impl Batch {
    /// One unconditional put.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Batch {
        Batch { puts: vec![Put { key: key.into(), value: value.into(), ttl_seconds: None }], ..Batch::default() }
    }

    /// One unconditional delete.
    pub fn delete(key: impl Into<Bytes>) -> Batch {
        Batch { deletes: vec![key.into()], ..Batch::default() }
    }

    /// Adds a precondition.
    pub fn check(mut self, key: impl Into<Bytes>, expect: Expect) -> Batch {
        self.checks.push(Check { key: key.into(), expect });
        self
    }

    /// How many keys it can change, hence how many revisions it can use.
    pub(crate) fn changes(&self) -> usize {
        self.puts.len() + self.deletes.len()
    }

    /// Bytes it will take in the log, near enough to charge for it.
    pub(crate) fn size(&self) -> usize {
        let checks: usize = self.checks.iter().map(|c| c.key.len() + 16).sum();
        let puts: usize = self.puts.iter().map(|p| p.key.len() + p.value.len() + 16).sum();
        let deletes: usize = self.deletes.iter().map(|d| d.len() + 4).sum();
        checks + puts + deletes + 32
    }
}

/// One raft entry. `expires` holds, per put of the batch, the unix second of its expiry or 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Batch {
        batch: Batch,
        expires: Vec<u64>,
    },
    /// Deletes each key that is still at the given revision.
    Expire {
        keys: Vec<(Bytes, u64)>,
    },
    Compact {
        revision: u64,
    },
    /// Moves the revision forward over everything that may have been published and lost, and compacts to it.
    Jump {
        revision: u64,
    },
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Batch { batch, .. } => write!(f, "batch of {} puts and {} deletes", batch.puts.len(), batch.deletes.len()),
            Command::Expire { keys } => write!(f, "expire {} keys", keys.len()),
            Command::Compact { revision } => write!(f, "compact {revision}"),
            Command::Jump { revision } => write!(f, "jump to {revision}"),
        }
    }
}

impl Command {
    /// What may be lost with this entry, if it may be lost at all.
    pub(crate) fn relaxed(&self) -> Option<Relaxed> {
        match self {
            Command::Batch { batch, .. } if batch.durability != Durability::Now => {
                Some(Relaxed { changes: batch.changes(), durability: batch.durability })
            }
            Command::Expire { keys } => Some(Relaxed { changes: keys.len(), durability: Durability::Soon }),
            Command::Batch { .. } | Command::Compact { .. } | Command::Jump { .. } => None,
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Command::Batch { batch, expires } => {
                out.push(1);
                out.push(match batch.durability {
                    Durability::Now => 0,
                    Durability::Soon => 1,
                    Durability::Heartbeat => 2,
                });
                put_u32(out, batch.checks.len());
                for check in &batch.checks {
                    put_bytes(out, &check.key);
                    let (tag, revision) = match check.expect {
                        Expect::Absent => (0u8, 0),
                        Expect::At(revision) => (1, revision),
                        Expect::Present => (2, 0),
                    };
                    out.push(tag);
                    out.extend_from_slice(&revision.to_le_bytes());
                }
                put_u32(out, batch.puts.len());
                for (put, expires) in batch.puts.iter().zip(expires) {
                    put_bytes(out, &put.key);
                    put_bytes(out, &put.value);
                    out.extend_from_slice(&expires.to_le_bytes());
                }
                put_u32(out, batch.deletes.len());
                for key in &batch.deletes {
                    put_bytes(out, key);
                }
            }
            Command::Expire { keys } => {
                out.push(2);
                put_u32(out, keys.len());
                for (key, revision) in keys {
                    put_bytes(out, key);
                    out.extend_from_slice(&revision.to_le_bytes());
                }
            }
            Command::Compact { revision } => {
                out.push(3);
                out.extend_from_slice(&revision.to_le_bytes());
            }
            Command::Jump { revision } => {
                out.push(4);
                out.extend_from_slice(&revision.to_le_bytes());
            }
        }
    }

    /// `None` if the bytes are not one whole command.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Command> {
        let mut input = Input(bytes);
        let command = match input.u8()? {
            1 => {
                let durability = match input.u8()? {
                    0 => Durability::Now,
                    1 => Durability::Soon,
                    2 => Durability::Heartbeat,
                    _ => return None,
                };
                let mut batch = Batch { durability, ..Batch::default() };
                for _ in 0..input.u32()? {
                    let key = input.bytes()?;
                    let tag = input.u8()?;
                    let revision = input.u64()?;
                    let expect = match tag {
                        0 => Expect::Absent,
                        1 => Expect::At(revision),
                        2 => Expect::Present,
                        _ => return None,
                    };
                    batch.checks.push(Check { key, expect });
                }
                let mut expires = Vec::new();
                for _ in 0..input.u32()? {
                    batch.puts.push(Put { key: input.bytes()?, value: input.bytes()?, ttl_seconds: None });
                    expires.push(input.u64()?);
                }
                for _ in 0..input.u32()? {
                    batch.deletes.push(input.bytes()?);
                }
                Command::Batch { batch, expires }
            }
            2 => {
                let mut keys = Vec::new();
                for _ in 0..input.u32()? {
                    keys.push((input.bytes()?, input.u64()?));
                }
                Command::Expire { keys }
            }
            3 => Command::Compact { revision: input.u64()? },
            4 => Command::Jump { revision: input.u64()? },
            _ => return None,
        };
        input.0.is_empty().then_some(command)
    }
}

/// Little-endian fields off the front of a slice; `None` when it ends too early.
pub(crate) struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    pub(crate) fn u128(&mut self) -> Option<u128> {
        Some(u128::from_le_bytes(self.take(16)?.try_into().ok()?))
    }

    pub(crate) fn slice(&mut self) -> Option<&'a [u8]> {
        let n = self.u32()? as usize;
        self.take(n)
    }

    pub(crate) fn bytes(&mut self) -> Option<Bytes> {
        self.slice().map(Bytes::copy_from_slice)
    }
}

pub(crate) fn put_u32(out: &mut Vec<u8>, n: usize) {
    out.extend_from_slice(&u32::try_from(n).expect("a batch is bounded in bytes").to_le_bytes());
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u32(out, bytes.len());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Command {
        let batch = Batch {
            checks: vec![
                Check { key: "a".into(), expect: Expect::Absent },
                Check { key: "b".into(), expect: Expect::At(7) },
                Check { key: "c".into(), expect: Expect::Present },
            ],
            puts: vec![Put { key: "a".into(), value: "1".into(), ttl_seconds: None }],
            deletes: vec!["b".into(), "".into()],
            durability: Durability::Soon,
        };
        Command::Batch { batch, expires: vec![99] }
    }

    #[test]
    fn commands_survive_encoding() {
        let expire = Command::Expire { keys: vec![("k".into(), 3)] };
        for command in [sample(), expire, Command::Compact { revision: 5 }, Command::Jump { revision: u64::MAX }] {
            let mut bytes = Vec::new();
            command.encode(&mut bytes);
            assert_eq!(Command::decode(&bytes), Some(command));
        }
    }

    #[test]
    fn no_truncated_or_extended_command_decodes() {
        let mut bytes = Vec::new();
        sample().encode(&mut bytes);
        for n in 0..bytes.len() {
            assert_eq!(Command::decode(&bytes[..n]), None, "the first {n} bytes");
        }
        bytes.push(0);
        assert_eq!(Command::decode(&bytes), None);
    }
}
