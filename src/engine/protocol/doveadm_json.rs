//! `doveadm -f json`: the values of the rows, in their order.
//!
//! `[{"mailbox":"INBOX","uid":"7"},...]`; numbers are strings or not, by version. Only as much of JSON is read as doveadm
//! writes: an array of objects of texts, numbers and `null`. Source: Dovecot, `src/doveadm/doveadm-print-json.c` of
//! 2.3.13, 2.3.19.1 and 2.4.1.

/// The longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 64 * 1024;

/// The output is no such JSON, or a value is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidJson;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Start,
    Between,
    Key,
    Colon,
    Value,
    Text,
    Bare,
    End,
}

/// Reads the output of one command.
#[derive(Debug)]
pub struct JsonReader {
    at: At,
    /// A backslash was read, and for `\u` these digits.
    escape: Option<Vec<u8>>,
    /// The first half of a pair.
    high_surrogate: Option<u32>,
    value: Vec<u8>,
}

impl Default for JsonReader {
    fn default() -> Self {
        Self::new()
    }
}

impl JsonReader {
    /// A reader for the output of one command.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            at: At::Start,
            escape: None,
            high_surrogate: None,
            value: Vec::new(),
        }
    }

    /// Gives the values that end in these bytes to `each`.
    ///
    /// # Errors
    ///
    /// [`InvalidJson`], or what `each` returns.
    pub fn push<E: From<InvalidJson>>(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for &byte in bytes {
            if self.step(byte)? {
                each(&self.value)?;
                self.value.clear();
            }
        }
        Ok(())
    }

    /// Whether the output was whole. A command without rows may print nothing.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        matches!(self.at, At::Start | At::End)
    }

    /// Whether a value ends.
    fn step(&mut self, byte: u8) -> Result<bool, InvalidJson> {
        if self.value.len() > MAX_VALUE_BYTES {
            return Err(InvalidJson);
        }
        if self.escape.is_some() {
            self.unescape(byte)?;
            return Ok(false);
        }
        let is_space = byte.is_ascii_whitespace();
        self.at = match (self.at, byte) {
            (At::Start, b'[') => At::Between,
            (At::Between, b'"') => At::Key,
            (At::Between, b'{' | b'}' | b',') => At::Between,
            (At::Between, b']') => At::End,
            (At::Key, b'"') => At::Colon,
            (At::Key, b'\\') => return Err(InvalidJson),
            (At::Key, _) => At::Key,
            (At::Colon, b':') => At::Value,
            (At::Value, b'"') => At::Text,
            (At::Value, b'0'..=b'9' | b'-' | b'n') => {
                self.value.push(byte);
                At::Bare
            }
            (At::Text, b'"') => {
                self.at = At::Between;
                return Ok(true);
            }
            (At::Text, b'\\') => {
                self.escape = Some(Vec::new());
                At::Text
            }
            (At::Text, _) => {
                self.value.push(byte);
                At::Text
            }
            (At::Bare, b',' | b'}') => {
                self.at = At::Between;
                if self.value == b"null" {
                    self.value.clear();
                }
                return Ok(true);
            }
            (At::Bare, _) if !is_space => {
                self.value.push(byte);
                At::Bare
            }
            (at, _) if is_space => at,
            _ => return Err(InvalidJson),
        };
        Ok(false)
    }

    fn unescape(&mut self, byte: u8) -> Result<(), InvalidJson> {
        let Some(mut digits) = self.escape.take() else {
            return Ok(());
        };
        if digits.is_empty() {
            let plain = match byte {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'b' => 8,
                b'f' => 12,
                b'"' | b'\\' | b'/' => byte,
                b'u' => {
                    self.escape = Some(vec![byte]);
                    return Ok(());
                }
                _ => return Err(InvalidJson),
            };
            self.value.push(plain);
            return Ok(());
        }
        digits.push(byte);
        if digits.len() < 5 {
            self.escape = Some(digits);
            return Ok(());
        }
        let digits = digits
            .get(1..)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let unit = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let unit = unit.ok_or(InvalidJson)?;
        let letter = match (self.high_surrogate.take(), unit) {
            (None, 0xD800..=0xDBFF) => {
                self.high_surrogate = Some(unit);
                return Ok(());
            }
            (Some(high), 0xDC00..=0xDFFF) => 0x1_0000 + ((high - 0xD800) << 10) + (unit - 0xDC00),
            (_, unit) => unit,
        };
        let letter = char::from_u32(letter).unwrap_or(char::REPLACEMENT_CHARACTER);
        let mut utf8 = [0; 4];
        self.value
            .extend_from_slice(letter.encode_utf8(&mut utf8).as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str, size: usize) -> Result<Vec<String>, InvalidJson> {
        let mut reader = JsonReader::new();
        let mut values = Vec::new();
        for piece in output.as_bytes().chunks(size) {
            reader.push(piece, |value| {
                values.push(String::from_utf8(value.to_vec()).unwrap());
                Ok::<_, InvalidJson>(())
            })?;
        }
        match reader.is_whole() {
            true => Ok(values),
            false => Err(InvalidJson),
        }
    }

    #[test]
    fn values_come_in_order_however_the_output_is_cut() {
        let output = "[{\"mailbox\":\"a \\\"b\\\\/\u{fc}\\n\\u00e4\\ud83d\\ude00\",\"uid\":\"7\",\"flags\":\"\"},\n\
                      {\"mailbox\" : \"B\", \"uid\":8, \"flags\":null}]\n";
        for size in 1..=output.len() {
            let values = read(output, size).unwrap();
            assert_eq!(
                values,
                ["a \"b\\/\u{fc}\n\u{e4}\u{1f600}", "7", "", "B", "8", ""]
            );
        }
        assert_eq!(read("", 1), Ok(vec![]));
        assert_eq!(read("[]\n", 1), Ok(vec![]));
    }

    #[test]
    fn what_is_no_such_output_is_an_error() {
        for output in [
            "x",
            "[{\"a\":\"b\"",
            "[{\"a\" \"b\"}]",
            "[{\"a\":[1]}]",
            "[{\"a\":\"\\x\"}]",
            "[{\"a\":\"\\u00g0\"}]",
        ] {
            assert_eq!(read(output, 1), Err(InvalidJson), "{output}");
        }
    }

    #[test]
    fn a_value_is_taken_at_the_limit_and_not_past_it() {
        for (length, ok) in [(MAX_VALUE_BYTES, true), (MAX_VALUE_BYTES + 1, false)] {
            let output = format!("[{{\"a\":\"{}\"}}]", "x".repeat(length));
            assert_eq!(read(&output, 4096).is_ok(), ok);
        }
    }
}
