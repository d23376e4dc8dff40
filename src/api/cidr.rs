//! Pure: CIDR arithmetic, and the bitmap allocator used for pod addresses, service cluster IPs and node ports.
//!
//! Addresses are integers inside ([`Cidr::nth`], [`Cidr::index_of`]), so both families share every function. Randomness
//! is an argument (`start`): a cursor for pods, a random number for services, so that racing proposers seldom collide.
//! Start at [`Cidr`], then [`Slots`] (numbers) and [`Allocator`] (addresses over them).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network: an address with its host bits cleared, and a prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("invalid CIDR address: {0}")]
    Syntax(String),
    /// `10.0.0.1/8`: where [`Cidr::parse_strict`] does not clear host bits silently.
    #[error("CIDR {0} has bits set beyond its prefix, the network is {1}")]
    HostBits(String, Cidr),
}

/// The bits of an address as a number, and how many there are.
fn bits(ip: IpAddr) -> (u128, u8) {
    match ip {
        IpAddr::V4(ip) => (u32::from(ip).into(), 32),
        IpAddr::V6(ip) => (u128::from(ip), 128),
    }
}

fn from_bits(value: u128, width: u8) -> IpAddr {
    match width {
        32 => IpAddr::V4(Ipv4Addr::from(u32::try_from(value).expect("an IPv4 number has 32 bits"))),
        _ => IpAddr::V6(Ipv6Addr::from(value)),
    }
}

fn all(width: u8) -> u128 {
    u128::MAX >> (128 - width)
}

fn mask(prefix: u8, width: u8) -> u128 {
    all(width) & u128::MAX.checked_shl((width - prefix).into()).unwrap_or(0)
}

impl Cidr {
    /// The network of `ip` at `prefix`; a prefix longer than the address is clipped to it.
    pub fn new(ip: IpAddr, prefix: u8) -> Cidr {
        let (value, width) = bits(ip);
        let prefix = prefix.min(width);
        Cidr { network: from_bits(value & mask(prefix, width), width), prefix }
    }

    /// One address as a network: `/32` or `/128`.
    pub fn host(ip: IpAddr) -> Cidr {
        Cidr::new(ip, 128)
    }

    /// Accepts only a network whose host bits are zero.
    pub fn parse_strict(text: &str) -> Result<Cidr, ParseError> {
        let cidr = Cidr::from_str(text)?;
        let (ip, _) = split(text)?;
        if ip == cidr.network { Ok(cidr) } else { Err(ParseError::HostBits(text.to_string(), cidr)) }
    }

    pub fn network(&self) -> IpAddr {
        self.network
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    pub fn is_ipv4(&self) -> bool {
        self.network.is_ipv4()
    }

    fn width(&self) -> u8 {
        bits(self.network).1
    }

    /// The last address (the broadcast address of an IPv4 network).
    pub fn last(&self) -> IpAddr {
        let (value, width) = bits(self.network);
        from_bits(value | (all(width) ^ mask(self.prefix, width)), width)
    }

    /// How many addresses; `u128::MAX` stands for all of IPv6.
    pub fn size(&self) -> u128 {
        1u128.checked_shl((self.width() - self.prefix).into()).unwrap_or(u128::MAX)
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.is_ipv4() && Cidr::new(ip, self.prefix) == *self
    }

    /// Whether all of `other` lies inside.
    pub fn covers(&self, other: &Cidr) -> bool {
        self.prefix <= other.prefix && self.contains(other.network)
    }

    pub fn overlaps(&self, other: &Cidr) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// Address number `n`, the network address being 0.
    pub fn nth(&self, n: u128) -> Option<IpAddr> {
        let (value, width) = bits(self.network);
        (n < self.size()).then(|| from_bits(value + n, width))
    }

    /// The inverse of [`Cidr::nth`].
    pub fn index_of(&self, ip: IpAddr) -> Option<u128> {
        self.contains(ip).then(|| bits(ip).0 - bits(self.network).0)
    }

    /// How many networks of length `prefix` fit: 0 if it is shorter than ours.
    pub fn subnets(&self, prefix: u8) -> u128 {
        match prefix.checked_sub(self.prefix) {
            Some(bits) if prefix <= self.width() => 1u128.checked_shl(bits.into()).unwrap_or(u128::MAX),
            _ => 0,
        }
    }

    /// Network number `n` of length `prefix` inside: how nodes get their pod ranges.
    pub fn subnet(&self, prefix: u8, n: u128) -> Option<Cidr> {
        if n >= self.subnets(prefix) {
            return None;
        }
        let (value, width) = bits(self.network);
        let step = n.checked_shl((width - prefix).into())?;
        Some(Cidr { network: from_bits(value + step, width), prefix })
    }

    /// The number of `inner` among our subnets of its length.
    pub fn subnet_index(&self, inner: &Cidr) -> Option<u128> {
        self.covers(inner).then(|| {
            let offset = bits(inner.network).0 - bits(self.network).0;
            offset.checked_shr((self.width() - inner.prefix).into()).unwrap_or(0)
        })
    }
}

fn split(text: &str) -> Result<(IpAddr, u8), ParseError> {
    let bad = || ParseError::Syntax(text.to_string());
    let (ip, prefix) = text.split_once('/').ok_or_else(bad)?;
    // Go's parser takes neither signs nor leading zeros in the prefix.
    let plain = prefix.bytes().all(|b| b.is_ascii_digit()) && (prefix.len() == 1 || !prefix.starts_with('0'));
    let ip: IpAddr = ip.parse().map_err(|_| bad())?;
    let prefix: u8 = prefix.parse().map_err(|_| bad())?;
    if plain && prefix <= bits(ip).1 { Ok((ip, prefix)) } else { Err(bad()) }
}

impl FromStr for Cidr {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Cidr, ParseError> {
        split(text).map(|(ip, prefix)| Cidr::new(ip, prefix))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// A set of taken numbers `0..len`, allocated from the upper band first.
///
/// The lower band (`static_len` numbers) is what users are told to choose fixed values from: `allocate` enters it only
/// when the rest is full (upstream's KEP-3070 for services, KEP-3682 for node ports).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    words: Vec<u64>,
    len: usize,
    static_len: usize,
    used: usize,
}

impl Slots {
    pub fn new(len: usize, static_len: usize) -> Slots {
        Slots { words: vec![0; len.div_ceil(64)], len, static_len: static_len.min(len), used: 0 }
    }

    /// The lower band of a service range of `len` addresses: `min(max(16, len/16), 256)`, none in a tiny range.
    pub fn service_band(len: usize) -> usize {
        if len < 16 { 0 } else { (len / 16).clamp(16, 256) }
    }

    /// The lower band of a node port range of `len` ports: `min(max(16, len/32), 128)`, none in a tiny range.
    pub fn port_band(len: usize) -> usize {
        if len < 16 { 0 } else { (len / 32).clamp(16, 128) }
    }

    pub fn has(&self, n: usize) -> bool {
        n < self.len && self.words[n / 64] & (1 << (n % 64)) != 0
    }

    /// Takes `n`; false if it is taken or out of range.
    pub fn take(&mut self, n: usize) -> bool {
        if n >= self.len || self.has(n) {
            return false;
        }
        self.words[n / 64] |= 1 << (n % 64);
        self.used += 1;
        true
    }

    /// Gives `n` back; false if it was not taken.
    pub fn release(&mut self, n: usize) -> bool {
        if !self.has(n) {
            return false;
        }
        self.words[n / 64] &= !(1 << (n % 64));
        self.used -= 1;
        true
    }

    /// Takes the first free number at or after `start` (modulo the band), upper band first.
    pub fn allocate(&mut self, start: u64) -> Option<usize> {
        let n = self.free_in(self.static_len, self.len, start).or_else(|| self.free_in(0, self.static_len, start))?;
        self.take(n);
        Some(n)
    }

    fn free_in(&self, from: usize, to: usize, start: u64) -> Option<usize> {
        let len = to.checked_sub(from).filter(|len| *len > 0)?;
        let first = from + usize::try_from(start % len as u64).expect("below a usize");
        self.first_free(first, to).or_else(|| self.first_free(from, first))
    }

    fn first_free(&self, from: usize, to: usize) -> Option<usize> {
        let mut n = from;
        while n < to {
            let free = !self.words[n / 64] >> (n % 64);
            if free != 0 {
                n += free.trailing_zeros() as usize;
                return (n < to).then_some(n);
            }
            n = (n / 64 + 1) * 64;
        }
        None
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn used(&self) -> usize {
        self.used
    }

    pub fn free(&self) -> usize {
        self.len - self.used
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    #[error("the provided IP ({ip}) is not in the valid range. The range of valid IPs is {cidr}")]
    NotInRange { ip: IpAddr, cidr: Cidr },
    #[error("provided IP is already allocated")]
    Allocated(IpAddr),
    #[error("range is full")]
    Full,
}

/// Addresses of one range. The network address is never given, nor the broadcast address of an IPv4 range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocator {
    cidr: Cidr,
    slots: Slots,
}

impl Allocator {
    /// At most this many addresses are handed out of one range, however wide it is.
    pub const CAPACITY_MAX: u128 = 1 << 20;

    /// For pods: no bands.
    pub fn pods(cidr: Cidr) -> Allocator {
        Allocator { cidr, slots: Slots::new(Allocator::capacity(&cidr), 0) }
    }

    /// For service cluster IPs: dynamic addresses come from the upper band first.
    pub fn services(cidr: Cidr) -> Allocator {
        let len = Allocator::capacity(&cidr);
        Allocator { cidr, slots: Slots::new(len, Slots::service_band(len)) }
    }

    /// A `/32` or `/31` has no address to spare for network and broadcast; its usable count is what remains after them.
    fn capacity(cidr: &Cidr) -> usize {
        let reserved = if cidr.is_ipv4() { 2 } else { 1 };
        usize::try_from(cidr.size().saturating_sub(reserved).min(Allocator::CAPACITY_MAX)).expect("capped")
    }

    pub fn cidr(&self) -> Cidr {
        self.cidr
    }

    fn index(&self, ip: IpAddr) -> Option<usize> {
        let n = self.cidr.index_of(ip)?.checked_sub(1)?;
        usize::try_from(n).ok().filter(|n| *n < self.slots.len())
    }

    fn address(&self, n: usize) -> IpAddr {
        self.cidr.nth(n as u128 + 1).expect("slots lie inside the range")
    }

    /// Takes this very address.
    pub fn take(&mut self, ip: IpAddr) -> Result<(), AllocError> {
        let n = self.index(ip).ok_or(AllocError::NotInRange { ip, cidr: self.cidr })?;
        if self.slots.take(n) { Ok(()) } else { Err(AllocError::Allocated(ip)) }
    }

    /// Takes a free address, looking from `start` (a cursor or a random number) on.
    pub fn allocate(&mut self, start: u64) -> Result<IpAddr, AllocError> {
        self.slots.allocate(start).map(|n| self.address(n)).ok_or(AllocError::Full)
    }

    pub fn release(&mut self, ip: IpAddr) -> bool {
        self.index(ip).is_some_and(|n| self.slots.release(n))
    }

    pub fn has(&self, ip: IpAddr) -> bool {
        self.index(ip).is_some_and(|n| self.slots.has(n))
    }

    /// The cursor behind `ip`: pass it to [`Allocator::allocate`] so that a released address rests for a whole round.
    pub fn after(&self, ip: IpAddr) -> u64 {
        self.index(ip).map_or(0, |n| n as u64 + 1)
    }

    pub fn used(&self) -> usize {
        self.slots.used()
    }

    pub fn free(&self) -> usize {
        self.slots.free()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(s: &str) -> Cidr {
        s.parse().unwrap()
    }
    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    #[test]
    fn parses_like_go() {
        assert_eq!(cidr("10.42.7.9/16").to_string(), "10.42.0.0/16");
        assert_eq!(cidr("fd00::1:2/112").to_string(), "fd00::1:0/112");
        assert_eq!(cidr("0.0.0.0/0").size(), 1 << 32);
        assert_eq!(cidr("::/0").size(), u128::MAX);
        for bad in ["10.0.0.0", "10.0.0.0/33", "10.0.0/8", "10.0.0.0/+8", "10.0.0.0/08", "::/129", "a/8", "10.0.0.0/", "/8"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
        assert!(matches!(Cidr::parse_strict("10.0.0.1/8"), Err(ParseError::HostBits(_, n)) if n == cidr("10.0.0.0/8")));
        assert_eq!(Cidr::parse_strict("10.0.0.0/8"), Ok(cidr("10.0.0.0/8")));
    }

    #[test]
    fn knows_inside_from_outside() {
        let pods = cidr("10.42.0.0/16");
        assert!(pods.contains(ip("10.42.255.255")) && !pods.contains(ip("10.43.0.0")) && !pods.contains(ip("::ffff:10.42.0.1")));
        assert_eq!(pods.last(), ip("10.42.255.255"));
        assert_eq!(cidr("::/0").last(), ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"));
        assert!(pods.overlaps(&cidr("10.0.0.0/8")) && cidr("10.0.0.0/8").overlaps(&pods) && !pods.overlaps(&cidr("10.43.0.0/16")));
        assert_eq!((pods.nth(257), pods.index_of(ip("10.42.1.1"))), (Some(ip("10.42.1.1")), Some(257)));
        assert_eq!(pods.nth(65536), None);
    }

    #[test]
    fn cuts_subnets() {
        let pods = cidr("10.42.0.0/16");
        assert_eq!(pods.subnets(24), 256);
        assert_eq!(pods.subnet(24, 3), Some(cidr("10.42.3.0/24")));
        assert_eq!(pods.subnet(24, 256), None);
        assert_eq!(pods.subnet_index(&cidr("10.42.3.0/24")), Some(3));
        assert_eq!((pods.subnets(8), pods.subnets(33)), (0, 0));
        assert_eq!(cidr("fd00::/48").subnet(64, 2), Some(cidr("fd00:0:0:2::/64")));
    }

    #[test]
    fn pods_get_addresses_in_turn_and_none_twice() {
        let mut a = Allocator::pods(cidr("10.42.0.0/29"));
        a.take(ip("10.42.0.1")).unwrap();
        let got: Vec<_> = (0..5).map(|_| a.allocate(0).unwrap()).collect();
        assert_eq!(got, (2..7).map(|n| ip(&format!("10.42.0.{n}"))).collect::<Vec<_>>());
        assert_eq!(a.allocate(0), Err(AllocError::Full));
        assert!(a.release(ip("10.42.0.3")) && !a.release(ip("10.42.0.3")));
        assert_eq!(a.allocate(a.after(ip("10.42.0.5"))), Ok(ip("10.42.0.3")));
        assert_eq!(a.take(ip("10.42.0.7")), Err(AllocError::NotInRange { ip: ip("10.42.0.7"), cidr: a.cidr() }));
        assert_eq!(a.take(ip("10.42.0.2")), Err(AllocError::Allocated(ip("10.42.0.2"))));
        assert_eq!((a.used(), a.free()), (6, 0));
    }

    #[test]
    fn services_leave_the_lower_band_to_users() {
        let mut a = Allocator::services(cidr("10.43.0.0/24"));
        assert_eq!(a.allocate(0), Ok(ip("10.43.0.17")));
        for _ in 0..237 {
            assert!(a.allocate(7).unwrap() > ip("10.43.0.16"));
        }
        assert_eq!(a.allocate(0), Ok(ip("10.43.0.1")));
        assert_eq!((Slots::service_band(65534), Slots::service_band(254), Slots::service_band(8)), (256, 16, 0));
        assert_eq!(Slots::port_band(2768), 86);
    }

    #[test]
    fn slots_wrap_and_stop_at_the_end() {
        let mut s = Slots::new(70, 0);
        assert_eq!(s.allocate(69), Some(69));
        assert_eq!(s.allocate(69), Some(0));
        for _ in 0..68 {
            s.allocate(3).unwrap();
        }
        assert_eq!((s.allocate(3), s.free()), (None, 0));
    }
}
