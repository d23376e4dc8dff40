//! Container logs in the CRI's line format: `<RFC 3339 time> <stdout|stderr> <F|P> <text>`.
//!
//! The shim writes ([`Splitter`]), the daemon rotates by renaming and asking the shim to reopen, and reads ([`parse`], [`tail`], [`Follower`]).
//! A line longer than 16 KiB is written in parts, all but the last marked `P`. The time is that of the read which ended the line.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub const LINE_BYTES_MAX: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static [u8] {
        match self {
            Stream::Stdout => b" stdout ",
            Stream::Stderr => b" stderr ",
        }
    }
}

/// Cuts what a pipe delivers into lines; holds what has no end yet.
pub struct Splitter {
    stream: Stream,
    partial: Vec<u8>,
}

impl Splitter {
    pub fn new(stream: Stream) -> Splitter {
        Splitter { stream, partial: Vec::new() }
    }

    /// Appends the log lines that `bytes` complete.
    pub fn feed(&mut self, bytes: &[u8], nanoseconds: u128, out: &mut Vec<u8>) {
        let stamp = stamp(nanoseconds);
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.hold(&rest[..end], &stamp, out);
            self.emit(b'F', &stamp, out);
            rest = &rest[end + 1..];
        }
        self.hold(rest, &stamp, out);
    }

    /// The last line of a process that did not end it stays a part of one: readers add no newline to it.
    pub fn finish(&mut self, nanoseconds: u128, out: &mut Vec<u8>) {
        if !self.partial.is_empty() {
            self.emit(b'P', &stamp(nanoseconds), out);
        }
    }

    fn hold(&mut self, mut bytes: &[u8], stamp: &[u8], out: &mut Vec<u8>) {
        while self.partial.len() + bytes.len() > LINE_BYTES_MAX {
            let (now, later) = bytes.split_at(LINE_BYTES_MAX - self.partial.len());
            self.partial.extend_from_slice(now);
            self.emit(b'P', stamp, out);
            bytes = later;
        }
        self.partial.extend_from_slice(bytes);
    }

    fn emit(&mut self, tag: u8, stamp: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(stamp);
        out.extend_from_slice(self.stream.name());
        out.extend_from_slice(&[tag, b' ']);
        out.append(&mut self.partial);
        out.push(b'\n');
    }
}

/// `2006-01-02T15:04:05.000000000Z`, always thirty bytes.
pub fn stamp(nanoseconds: u128) -> [u8; 30] {
    let seconds = (nanoseconds / 1_000_000_000) as i64;
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 0000-03-01, in eras of 400 years: a year that starts in March ends with its leap day.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let mut out = *b"0000-00-00T00:00:00.000000000Z";
    let mut digits = |at: usize, width: usize, mut value: u64| {
        for place in (at..at + width).rev() {
            out[place] = b'0' + (value % 10) as u8;
            value /= 10;
        }
    };
    digits(0, 4, year as u64);
    digits(5, 2, month as u64);
    digits(8, 2, day as u64);
    digits(11, 2, (second / 3600) as u64);
    digits(14, 2, (second / 60 % 60) as u64);
    digits(17, 2, (second % 60) as u64);
    digits(20, 9, (nanoseconds % 1_000_000_000) as u64);
    out
}

/// One line of a log file, without its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line<'a> {
    pub time: &'a str,
    pub stream: Stream,
    /// More of the same line follows.
    pub partial: bool,
    pub text: &'a [u8],
}

/// `None`: not a whole line of this format (a torn write, or not our file).
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let partial = match parts.next()? {
        b"P" => true,
        tag if tag.starts_with(b"F") => false,
        _ => return None,
    };
    Some(Line { time, stream, partial, text: parts.next().unwrap_or(b"") })
}

/// Reads a log from some place on, and further as it grows, across rotations.
///
/// Lines come as stored; [`parse`] takes them apart. After `None` from [`Follower::next_line`] call it again once the file may have grown.
pub struct Follower {
    path: PathBuf,
    reader: BufReader<File>,
    line: Vec<u8>,
    inode: u64,
}

impl Follower {
    /// Starts so that the last `lines` full lines are still to come; `None` means from the beginning.
    pub fn open(path: &Path, lines: Option<usize>) -> io::Result<Follower> {
        let mut file = File::open(path)?;
        if let Some(lines) = lines {
            let start = tail(&mut file, lines)?;
            file.seek(SeekFrom::Start(start))?;
        }
        let inode = file.metadata()?.ino();
        Ok(Follower { path: path.to_path_buf(), reader: BufReader::new(file), line: Vec::new(), inode })
    }

    /// The next whole line; `None` at the (present) end.
    pub fn next_line(&mut self) -> io::Result<Option<&[u8]>> {
        if self.line.ends_with(b"\n") {
            self.line.clear();
        }
        loop {
            self.reader.read_until(b'\n', &mut self.line)?;
            if self.line.ends_with(b"\n") {
                return Ok(Some(&self.line));
            }
            // At the end of a file that has been renamed away: go on with the new one. The inode is asked for before the
            // last read, so that what was written until the rename is not missed.
            match fs::metadata(&self.path) {
                Ok(metadata) if metadata.ino() != self.inode => {
                    self.reader.read_until(b'\n', &mut self.line)?;
                    if self.line.ends_with(b"\n") {
                        return Ok(Some(&self.line));
                    }
                    let file = File::open(&self.path)?;
                    self.inode = file.metadata()?.ino();
                    self.reader = BufReader::new(file);
                    self.line.clear();
                }
                _ => return Ok(None),
            }
        }
    }
}

/// Where the last `lines` full lines start. Reads backwards, so the cost is that of what is shown.
pub fn tail(file: &mut File, lines: usize) -> io::Result<u64> {
    const BLOCK: u64 = 16 * 1024;
    let mut end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let mut starts: VecDeque<u64> = VecDeque::new();
    let mut carry: Vec<u8> = Vec::new();
    while end > 0 && starts.len() <= lines {
        let size = BLOCK.min(end);
        end -= size;
        let mut block = vec![0; size as usize];
        file.seek(SeekFrom::Start(end))?;
        file.read_exact(&mut block)?;
        block.extend_from_slice(&carry);
        // Whole lines of this block, from its second line on: the first may begin further up.
        let first = if end == 0 { 0 } else { block.iter().position(|byte| *byte == b'\n').map_or(block.len(), |at| at + 1) };
        let mut found = Vec::new();
        let mut at = first;
        while at < block.len() {
            let next = block[at..].iter().position(|byte| *byte == b'\n').map_or(block.len(), |length| at + length + 1);
            // Parts of a line count with its last part.
            let partial = parse(&block[at..next]).is_some_and(|line| line.partial);
            found.push((end + at as u64, partial));
            at = next;
        }
        for (start, partial) in found.into_iter().rev() {
            if partial && let Some(front) = starts.front_mut() {
                *front = start;
                continue;
            }
            if starts.len() == lines {
                return Ok(starts[0]);
            }
            starts.push_front(start);
        }
        carry = block[..first].to_vec();
    }
    Ok(starts.front().copied().unwrap_or(0))
}

/// Renames a log aside and drops the oldest: `x.log` → `x.log.<suffix>`. The writer must be told to reopen afterwards.
pub fn rotate(path: &Path, suffix: &str, keep: usize) -> io::Result<()> {
    let mut target = path.as_os_str().to_owned();
    target.push(".");
    target.push(suffix);
    fs::rename(path, &target)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned() + ".";
    let mut old: Vec<PathBuf> = fs::read_dir(path.parent().unwrap_or(Path::new(".")))?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&name))
        .map(|entry| entry.path())
        .collect();
    old.sort();
    for extra in old.iter().rev().skip(keep) {
        fs::remove_file(extra)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: u128 = 1_700_000_000_123_456_789;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("coracle-log-{name}-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        path
    }

    #[test]
    fn times_are_written_in_full() {
        assert_eq!(&stamp(T), b"2023-11-14T22:13:20.123456789Z");
        assert_eq!(&stamp(0), b"1970-01-01T00:00:00.000000000Z");
        assert_eq!(&stamp(1_709_164_800_000_000_000), b"2024-02-29T00:00:00.000000000Z");
    }

    #[test]
    fn lines_come_whole_however_they_were_read() {
        let mut splitter = Splitter::new(Stream::Stderr);
        let mut out = Vec::new();
        splitter.feed(b"one\ntw", T, &mut out);
        splitter.feed(b"o\n\nthree", T, &mut out);
        splitter.finish(T, &mut out);
        let lines: Vec<Line> = out.split_inclusive(|byte| *byte == b'\n').map(|line| parse(line).unwrap()).collect();
        let texts: Vec<&[u8]> = lines.iter().map(|line| line.text).collect();
        assert_eq!(texts, [&b"one"[..], b"two", b"", b"three"]);
        let partial: Vec<bool> = lines.iter().map(|line| line.partial).collect();
        assert_eq!(partial, [false, false, false, true]);
        assert!(lines.iter().all(|line| line.stream == Stream::Stderr));
    }

    #[test]
    fn long_lines_are_cut_into_parts() {
        let mut splitter = Splitter::new(Stream::Stdout);
        let mut out = Vec::new();
        splitter.feed(&[b'x'; 40_000], T, &mut out);
        splitter.feed(b"\n", T, &mut out);
        let lines: Vec<Line> = out.split_inclusive(|byte| *byte == b'\n').map(|line| parse(line).unwrap()).collect();
        let shape: Vec<(usize, bool)> = lines.iter().map(|line| (line.text.len(), line.partial)).collect();
        assert_eq!(shape, [(16_384, true), (16_384, true), (7_232, false)]);
    }

    #[test]
    fn the_tail_counts_lines_not_parts() {
        let path = scratch("tail");
        let mut out = Vec::new();
        let mut splitter = Splitter::new(Stream::Stdout);
        for number in 0..2000 {
            splitter.feed(format!("line {number}\n").as_bytes(), T, &mut out);
        }
        splitter.feed(&[&[b'y'; 20_000][..], b"\n"].concat(), T, &mut out);
        fs::write(&path, &out).unwrap();
        let read = |lines: usize| {
            let mut follower = Follower::open(&path, Some(lines)).unwrap();
            let mut found = Vec::new();
            while let Some(line) = follower.next_line().unwrap() {
                found.push(String::from_utf8_lossy(parse(line).unwrap().text).into_owned());
            }
            found
        };
        assert_eq!(read(0).len(), 0);
        assert_eq!(read(1).len(), 2, "both parts of the long line");
        assert_eq!(read(3)[..2], ["line 1998".to_string(), "line 1999".to_string()]);
        assert_eq!(read(5000).len(), 2002);
        assert_eq!(read(1500)[0], "line 501");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn following_goes_on_in_the_new_file_after_a_rotation() {
        let path = scratch("follow");
        fs::write(&path, "t stdout F one\n").unwrap();
        let mut follower = Follower::open(&path, None).unwrap();
        assert_eq!(follower.next_line().unwrap(), Some(&b"t stdout F one\n"[..]));
        assert_eq!(follower.next_line().unwrap(), None);
        let mut old = fs::OpenOptions::new().append(true).open(&path).unwrap();
        io::Write::write_all(&mut old, b"t stdout F two\n").unwrap();
        rotate(&path, "1", 1).unwrap();
        fs::write(&path, "t stdout F three\n").unwrap();
        assert_eq!(follower.next_line().unwrap(), Some(&b"t stdout F two\n"[..]));
        assert_eq!(follower.next_line().unwrap(), Some(&b"t stdout F three\n"[..]));
        fs::remove_file(&path).unwrap();
        fs::remove_file(path.with_file_name(format!("{}.1", path.file_name().unwrap().to_string_lossy()))).unwrap();
    }
}
