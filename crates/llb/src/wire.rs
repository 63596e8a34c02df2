//! The protobuf wire format: as much as the LLB messages need.

use crate::LlbError;

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED32: u8 = 5;

/// Appends fields to a buffer, leaving out what proto3 leaves out: zeros and empty texts.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    buffer: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(buffer: &'a mut Vec<u8>) -> Self {
        Self { buffer }
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.buffer.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.buffer.push(value as u8);
    }

    fn tag(&mut self, field: u32, wire_type: u8) {
        self.varint(u64::from(field) << 3 | u64::from(wire_type));
    }

    pub(crate) fn int(&mut self, field: u32, value: i64) {
        if value != 0 {
            self.present(field, value as u64);
        }
    }

    /// Writes a number that is there even if it is zero: a member of a oneof.
    pub(crate) fn present(&mut self, field: u32, value: u64) {
        self.tag(field, VARINT);
        self.varint(value);
    }

    pub(crate) fn flag(&mut self, field: u32, value: bool) {
        self.int(field, i64::from(value));
    }

    pub(crate) fn text(&mut self, field: u32, value: &str) {
        self.bytes(field, value.as_bytes());
    }

    pub(crate) fn bytes(&mut self, field: u32, value: &[u8]) {
        if !value.is_empty() {
            self.item(field, value);
        }
    }

    /// Writes bytes that are there even if there are none: an element of a list, a key or value of a map.
    pub(crate) fn item(&mut self, field: u32, value: &[u8]) {
        self.tag(field, LENGTH);
        self.varint(value.len() as u64);
        self.buffer.extend_from_slice(value);
    }

    pub(crate) fn texts(&mut self, field: u32, values: &[String]) {
        for value in values {
            self.item(field, value.as_bytes());
        }
    }

    pub(crate) fn message(&mut self, field: u32, write: impl FnOnce(&mut Writer<'_>)) {
        self.tag(field, LENGTH);
        // Most messages are shorter than 128 bytes: one byte is kept for the length, and more are made if needed.
        let length_at = self.buffer.len();
        self.buffer.push(0);
        write(&mut Writer {
            buffer: self.buffer,
        });
        let length = self.buffer.len() - length_at - 1;
        if length < 0x80 {
            self.buffer[length_at] = length as u8;
            return;
        }
        let mut prefix = Vec::with_capacity(10);
        Writer {
            buffer: &mut prefix,
        }
        .varint(length as u64);
        self.buffer.splice(length_at..=length_at, prefix);
    }

    pub(crate) fn packed(&mut self, field: u32, values: impl ExactSizeIterator<Item = i64>) {
        if values.len() != 0 {
            self.message(field, |writer| {
                values.for_each(|value| writer.varint(value as u64))
            });
        }
    }

    /// Writes an entry of a map: key and value are there even if empty.
    pub(crate) fn entry(&mut self, field: u32, key: &str, value: impl FnOnce(&mut Writer<'_>)) {
        self.message(field, |writer| {
            writer.item(1, key.as_bytes());
            value(writer);
        });
    }

    /// Appends fields that are already encoded.
    pub(crate) fn raw(&mut self, fields: &[u8]) {
        self.buffer.extend_from_slice(fields);
    }
}

/// One field of a message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field<'a> {
    pub(crate) number: u32,
    pub(crate) value: Value<'a>,
    /// The field with its tag.
    pub(crate) raw: &'a [u8],
    message: &'static str,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Value<'a> {
    Varint(u64),
    Fixed(u8),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    fn wrong<T>(&self) -> Result<T, LlbError> {
        let wire_type = match self.value {
            Value::Varint(_) => VARINT,
            Value::Fixed(wire_type) => wire_type,
            Value::Bytes(_) => LENGTH,
        };
        Err(LlbError::WireType {
            message: self.message,
            field: self.number,
            wire_type,
        })
    }

    pub(crate) fn int(&self) -> Result<i64, LlbError> {
        match self.value {
            Value::Varint(value) => Ok(value as i64),
            _ => self.wrong(),
        }
    }

    pub(crate) fn int32(&self) -> Result<i32, LlbError> {
        Ok(self.int()? as i32)
    }

    pub(crate) fn flag(&self) -> Result<bool, LlbError> {
        Ok(self.int()? != 0)
    }

    pub(crate) fn bytes(&self) -> Result<&'a [u8], LlbError> {
        match self.value {
            Value::Bytes(bytes) => Ok(bytes),
            _ => self.wrong(),
        }
    }

    pub(crate) fn text(&self) -> Result<String, LlbError> {
        let text = std::str::from_utf8(self.bytes()?);
        Ok(text
            .map_err(|_| LlbError::Text {
                message: self.message,
            })?
            .to_owned())
    }

    /// Returns the elements of a list of numbers, packed or single.
    pub(crate) fn numbers(&self) -> Result<Vec<i64>, LlbError> {
        let bytes = match self.value {
            Value::Varint(value) => return Ok(vec![value as i64]),
            Value::Bytes(bytes) => bytes,
            Value::Fixed(_) => return self.wrong(),
        };
        let mut reader = Reader::new(self.message, bytes);
        let mut numbers = Vec::new();
        while reader.at < bytes.len() {
            numbers.push(reader.varint()? as i64);
        }
        Ok(numbers)
    }
}

/// Reads the fields of one message.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    message: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(message: &'static str, bytes: &'a [u8]) -> Self {
        Self {
            message,
            bytes,
            at: 0,
        }
    }

    fn malformed(&self) -> LlbError {
        LlbError::Malformed {
            message: self.message,
            offset: self.at,
        }
    }

    fn varint(&mut self) -> Result<u64, LlbError> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or_else(|| self.malformed())?;
            self.at += 1;
            if shift == 63 && byte > 1 {
                return Err(self.malformed());
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.malformed())
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], LlbError> {
        let length = usize::try_from(length).map_err(|_| self.malformed())?;
        let end = self
            .at
            .checked_add(length)
            .filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| self.malformed())?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    pub(crate) fn next(&mut self) -> Result<Option<Field<'a>>, LlbError> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let start = self.at;
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| self.malformed())?;
        if number == 0 {
            return Err(self.malformed());
        }
        let wire_type = (tag & 7) as u8;
        let value = match wire_type {
            VARINT => Value::Varint(self.varint()?),
            FIXED64 => self.take(8).map(|_| Value::Fixed(wire_type))?,
            FIXED32 => self.take(4).map(|_| Value::Fixed(wire_type))?,
            LENGTH => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            _ => {
                return Err(LlbError::WireType {
                    message: self.message,
                    field: number,
                    wire_type,
                });
            }
        };
        let raw = &self.bytes[start..self.at];
        Ok(Some(Field {
            number,
            value,
            raw,
            message: self.message,
        }))
    }
}
