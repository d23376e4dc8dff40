//! Pure: how rows and their headings are laid out in checkpoints and snapshots.
//!
//! A checkpoint row is `key revision(8, BE) chunk(2, BE)`, cut so that no page of the database outgrows a quarter of its
//! segment (such pages go to files that are never synced). What a row set should add up to, a count and a wrapping sum of
//! hashes of key and revision, stands beside it; each value carries its own checksum. The database underneath may lose
//! rows without a word; this is how we know.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::command::{Input, put_bytes};
use super::raft::Members;
use super::state::Row;
use super::wal::Position;

/// No stored value is longer than this.
pub(crate) const CHUNK_BYTES: usize = 24 << 10;
const ROW_HEADER: usize = 25;
const TOMBSTONE: u8 = 1;
const DEFLATED: u8 = 2;
/// Smaller values are not worth compressing.
const COMPRESS_MIN: usize = 512;

/// What a row set is as of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    pub cluster: u128,
    pub applied: Option<Position>,
    pub members: Members,
    pub revision: u64,
}

/// What its rows add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub count: u64,
    hash: u128,
}

impl Sum {
    pub(crate) fn add(&mut self, key: &[u8], revision: u64) {
        self.count += 1;
        self.hash = self.hash.wrapping_add(row_hash(key, revision));
    }

    pub(crate) fn remove(&mut self, key: &[u8], revision: u64) {
        self.count = self.count.wrapping_sub(1);
        self.hash = self.hash.wrapping_sub(row_hash(key, revision));
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.hash.to_le_bytes());
    }

    pub(crate) fn decode(input: &mut Input) -> Option<Sum> {
        Some(Sum { count: input.u64()?, hash: input.u128()? })
    }
}

fn row_hash(key: &[u8], revision: u64) -> u128 {
    let digest = Sha256::new().chain_update(revision.to_le_bytes()).chain_update(key).finalize();
    u128::from_le_bytes(digest[..16].try_into().expect("a digest has 32 bytes"))
}

impl Head {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let at = self.applied.unwrap_or(Position { term: u64::MAX, index: u64::MAX });
        out.extend_from_slice(&self.cluster.to_le_bytes());
        out.extend_from_slice(&at.term.to_le_bytes());
        out.extend_from_slice(&at.index.to_le_bytes());
        out.extend_from_slice(&self.revision.to_le_bytes());
        self.members.encode(out);
    }

    pub(crate) fn decode(input: &mut Input) -> Option<Head> {
        let cluster = input.u128()?;
        let at = Position { term: input.u64()?, index: input.u64()? };
        let applied = (at.index != u64::MAX).then_some(at);
        Some(Head { cluster, applied, revision: input.u64()?, members: Members::decode(input)? })
    }
}

/// Appends a CRC; [`checked`] takes it off again.
pub(crate) fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

pub(crate) fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    (crc32c::crc32c(body) == u32::from_le_bytes(*crc)).then_some(body)
}

pub(crate) fn row_key(key: &[u8], revision: u64, chunk: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 10);
    out.extend_from_slice(key);
    out.extend_from_slice(&revision.to_be_bytes());
    out.extend_from_slice(&chunk.to_be_bytes());
    out
}

/// Key, revision and chunk number.
pub(crate) fn split_row_key(bytes: &[u8]) -> Option<(&[u8], u64, u16)> {
    let (rest, chunk) = bytes.split_last_chunk::<2>()?;
    let (key, revision) = rest.split_last_chunk::<8>()?;
    Some((key, u64::from_be_bytes(*revision), u16::from_be_bytes(*chunk)))
}

fn value_crc(row: &Row) -> u32 {
    let crc = crc32c::crc32c(&row.key);
    let crc = crc32c::crc32c_append(crc, &row.revision.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &row.created.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &row.expires.to_le_bytes());
    crc32c::crc32c_append(crc, &row.value)
}

/// The chunks of a row's value.
pub(crate) fn encode_row(row: &Row, deflater: &mut Deflater) -> Vec<Vec<u8>> {
    let deflated = (row.value.len() >= COMPRESS_MIN).then(|| deflater.deflate(&row.value)).filter(|d| d.len() < row.value.len() / 8 * 7);
    let flags = if deflated.is_some() { DEFLATED } else { 0 };
    let data: &[u8] = deflated.as_deref().unwrap_or(&row.value);
    let mut out = Vec::with_capacity(ROW_HEADER + data.len());
    out.push(flags);
    out.extend_from_slice(&row.created.to_le_bytes());
    out.extend_from_slice(&row.expires.to_le_bytes());
    out.extend_from_slice(&value_crc(row).to_le_bytes());
    out.extend_from_slice(&u32::try_from(row.value.len()).expect("values are bounded").to_le_bytes());
    out.extend_from_slice(data);
    out.chunks(CHUNK_BYTES).map(<[u8]>::to_vec).collect()
}

/// Stands for a deleted key until its older rows are gone.
pub(crate) fn encode_tombstone() -> Vec<u8> {
    let mut out = vec![0; ROW_HEADER];
    out[0] = TOMBSTONE;
    out
}

/// A row from its joined chunks: `Ok(None)` for a tombstone, `Err` if damaged.
pub(crate) fn decode_row(key: &[u8], revision: u64, bytes: &[u8]) -> Result<Option<Row>, String> {
    let damaged = || format!("the row of {} at revision {revision} is damaged", super::show(key));
    let mut input = Input(bytes);
    let mut fields = || Some((input.u8()?, input.u64()?, input.u64()?, input.u32()?, input.u32()? as usize));
    let (flags, created, expires, crc, length) = fields().ok_or_else(damaged)?;
    if flags == TOMBSTONE {
        return Ok(None);
    }
    let value = if flags & DEFLATED != 0 { inflate(input.0, length).ok_or_else(damaged)? } else { input.0.to_vec() };
    let row = Row { key: Bytes::copy_from_slice(key), value: value.into(), revision, created, expires };
    if row.value.len() != length || value_crc(&row) != crc {
        return Err(damaged());
    }
    Ok(Some(row))
}

pub(crate) fn encode_plain(row: &Row, out: &mut Vec<u8>) {
    put_bytes(out, &row.key);
    put_bytes(out, &row.value);
    for field in [row.revision, row.created, row.expires] {
        out.extend_from_slice(&field.to_le_bytes());
    }
}

pub(crate) fn decode_plain(input: &mut Input) -> Option<Row> {
    Some(Row { key: input.bytes()?, value: input.bytes()?, revision: input.u64()?, created: input.u64()?, expires: input.u64()? })
}

/// A compressor's tables, 300 KB, for one value after the other.
pub(crate) struct Deflater(flate2::Compress);

impl Deflater {
    pub(crate) fn new() -> Deflater {
        Deflater(flate2::Compress::new(flate2::Compression::fast(), false))
    }

    pub(crate) fn deflate(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.0.reset();
        let mut out = Vec::with_capacity(bytes.len() / 2 + 64);
        loop {
            let done = self.0.total_in() as usize;
            let status = self.0.compress_vec(&bytes[done..], &mut out, flate2::FlushCompress::Finish);
            if matches!(status.expect("deflate takes any bytes"), flate2::Status::StreamEnd) {
                return out;
            }
            out.reserve(out.capacity());
        }
    }
}

/// Exactly `length` bytes, or nothing.
pub(crate) fn inflate(bytes: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut decompressor = flate2::Decompress::new(false);
    let mut out = Vec::with_capacity(length.min(64 << 20) + 1);
    let status = decompressor.decompress_vec(bytes, &mut out, flate2::FlushDecompress::Finish).ok()?;
    let whole = decompressor.total_in() as usize == bytes.len();
    (matches!(status, flate2::Status::StreamEnd) && whole && out.len() == length).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: Vec<u8>) -> Row {
        Row { key: "g\0r\0a\0web".into(), value: value.into(), revision: 7, created: 3, expires: 9 }
    }

    #[test]
    fn rows_survive_chunking_and_compression() {
        let noise: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let mut deflater = Deflater::new();
        for value in [vec![], vec![1], vec![5; 100_000], noise, vec![7; 1000]] {
            let row = row(value);
            let chunks = encode_row(&row, &mut deflater);
            assert!(chunks.iter().all(|chunk| chunk.len() <= CHUNK_BYTES));
            assert_eq!(decode_row(&row.key, row.revision, &chunks.concat()), Ok(Some(row)));
        }
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let row = row(vec![42; 2000]);
        let bytes = encode_row(&row, &mut Deflater::new()).concat();
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let decoded = decode_row(&row.key, row.revision, &bytes);
            // Turning a row into a tombstone is caught by the sum; unused bits of the compressed stream do no harm.
            assert!(decoded.is_err() || decoded == Ok(Some(row.clone())) || bit < 8, "bit {bit}");
        }
        assert!(decode_row(b"other", row.revision, &bytes).is_err());
    }

    #[test]
    fn sums_do_not_depend_on_order() {
        let (mut a, mut b) = (Sum::default(), Sum::default());
        a.add(b"x", 1);
        a.add(b"y", 2);
        b.add(b"y", 2);
        b.add(b"z", 9);
        b.add(b"x", 1);
        assert_ne!(a, b);
        b.remove(b"z", 9);
        assert_eq!(a, b);
    }

    #[test]
    fn keys_split_as_they_were_joined() {
        let joined = row_key(b"g\0r\0a", 300, 2);
        assert_eq!(split_row_key(&joined), Some((&b"g\0r\0a"[..], 300, 2)));
        assert_eq!(split_row_key(b"short"), None);
    }

    #[test]
    fn seals_hold() {
        let sealed_bytes = sealed(b"abc".to_vec());
        assert_eq!(checked(&sealed_bytes), Some(&b"abc"[..]));
        assert_eq!(checked(&sealed_bytes[1..]), None);
        assert_eq!(checked(b""), None);
    }
}
