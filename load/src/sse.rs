//! Server-sent events, as far as completions use them: the data of each event, whatever the chunks
//! it came in.

/// An event longer than this is not a completion's.
const MAX_EVENT_BYTES: usize = 1 << 20;

/// Why a stream is not one of events.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Longer than any completion.
    #[error("an event of more than {MAX_EVENT_BYTES} bytes")]
    TooLong,
    /// Not text.
    #[error("an event that is not UTF-8")]
    NotUtf8,
}

/// Takes bytes as they come and gives whole events. Lines end with LF, CRLF or CR; `event`, `id`,
/// `retry` and comments are read over. Source: the event stream format of the HTML standard,
/// section 9.2.6.
#[derive(Debug, Default)]
pub struct EventReader {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a CR: an LF now belongs to it.
    after_cr: bool,
}

impl EventReader {
    /// The data of every event that `bytes` complete.
    ///
    /// # Errors
    /// When an event is too long or not UTF-8; the stream cannot be read further.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, Error> {
        let mut events = Vec::new();
        for &byte in bytes {
            let belongs_to_cr = byte == b'\n' && std::mem::take(&mut self.after_cr);
            self.after_cr = byte == b'\r';
            match byte {
                _ if belongs_to_cr => {}
                b'\n' | b'\r' => events.extend(self.end_line()?),
                _ => self.line.push(byte),
            }
            if self.line.len() + self.data.len() > MAX_EVENT_BYTES {
                return Err(Error::TooLong);
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Result<Option<String>, Error> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            let has_data = std::mem::take(&mut self.has_data);
            return has_data
                .then(|| String::from_utf8(data).map_err(|_| Error::NotUtf8))
                .transpose();
        }
        let (name, value) = match line.iter().position(|&byte| byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line.as_slice(), [].as_slice()),
        };
        if name == b"data" {
            if self.has_data {
                self.data.push(b'\n');
            }
            self.data
                .extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
            self.has_data = true;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(pieces: &[&[u8]]) -> Result<Vec<String>, Error> {
        let mut reader = EventReader::default();
        let mut events = Vec::new();
        for piece in pieces {
            events.extend(reader.push(piece)?);
        }
        Ok(events)
    }

    #[test]
    fn reads_data_and_nothing_else() {
        let stream =
            b": keep-alive\n\nevent: x\nid: 1\ndata: one\n\ndata:two\ndata:  three\n\nretry: 5\n\ndata\n\ndata: cut";
        assert_eq!(read(&[stream]).unwrap(), ["one", "two\n three", ""]);
    }

    #[test]
    fn all_line_ends_are_known() {
        assert_eq!(
            read(&[b"data: a\r\n\r\ndata: b\r\rdata: c\n\n"]).unwrap(),
            ["a", "b", "c"]
        );
    }

    #[test]
    fn what_is_no_text_or_has_no_end_is_refused() {
        assert_eq!(read(&[b"data: \xff\xfe\n\n"]), Err(Error::NotUtf8));
        let endless = vec![b'x'; 64 << 10];
        assert_eq!(read(&vec![endless.as_slice(); 17]), Err(Error::TooLong));
        let lines = b"data: y\n".repeat(8 << 10);
        assert_eq!(read(&vec![lines.as_slice(); 70]), Err(Error::TooLong));
    }

    proptest! {
        /// However a stream is cut, also within a character or between CR and LF, the events are
        /// the same.
        #[test]
        fn chunk_boundaries_do_not_matter(
            datas in prop::collection::vec("[a-z é漢🙂:{}\"]{0,12}", 0..6),
            end in prop::sample::select(vec!["\n", "\r\n", "\r"]),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let event = |data: &String| format!("data: {data}{end}{end}");
            let stream: String = datas.iter().map(event).collect();
            let bytes = stream.as_bytes();
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(read(&pieces).unwrap(), datas);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&[&bytes]);
        }
    }
}
