//! A stored value of unknown type, and its JSON form.

use std::fmt::{self, Write as _};

use serde::de::{
    self, Deserialize, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor,
};

/// A value of any type.
#[derive(Debug, PartialEq)]
pub(super) enum Shown {
    Null,
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Shown>),
    Map(Vec<(Shown, Shown)>),
}

impl Shown {
    /// This value as JSON on one line. JSON has no byte arrays, infinities, NaN or keys that are
    /// not text. They become `{"$bytes": "hexadecimal"}`, `{"$float": "inf"}`, and the key's JSON
    /// as text.
    pub(super) fn to_json(&self) -> String {
        let mut json = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut json);
        json
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        match self {
            Self::Null => out.write_str("null"),
            Self::Bool(value) => write!(out, "{value}"),
            Self::Signed(value) => write!(out, "{value}"),
            Self::Unsigned(value) => write!(out, "{value}"),
            Self::Float(value) if value.is_finite() => write!(out, "{value:?}"),
            Self::Float(value) => write!(out, "{{\"$float\":\"{value}\"}}"),
            Self::Text(text) => quote(text, out),
            Self::Bytes(bytes) => {
                out.write_str("{\"$bytes\":\"")?;
                bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"))?;
                out.write_str("\"}")
            }
            Self::List(items) => {
                out.write_char('[')?;
                for (i, item) in items.iter().enumerate() {
                    out.write_str(if i == 0 { "" } else { "," })?;
                    item.write(out)?;
                }
                out.write_char(']')
            }
            Self::Map(entries) => {
                out.write_char('{')?;
                for (i, (key, value)) in entries.iter().enumerate() {
                    out.write_str(if i == 0 { "" } else { "," })?;
                    match key {
                        Self::Text(key) => quote(key, out)?,
                        other => quote(&other.to_json(), out)?,
                    }
                    out.write_char(':')?;
                    value.write(out)?;
                }
                out.write_char('}')
            }
        }
    }
}

/// Writes `text` as a JSON string, with control characters escaped for the terminal.
fn quote(text: &str, out: &mut String) -> fmt::Result {
    out.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' => out.write_str("\\\"")?,
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\t' => out.write_str("\\t")?,
            '\r' => out.write_str("\\r")?,
            // All control characters are below U+00A0.
            c if c.is_control() => write!(out, "\\u{:04x}", u32::from(c))?,
            c => out.write_char(c)?,
        }
    }
    out.write_char('"')
}

impl<'de> Deserialize<'de> for Shown {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Shown;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Shown, E> {
        Ok(Shown::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Shown, E> {
        Ok(Shown::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Shown, D::Error> {
        inner.deserialize_any(self)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Shown, D::Error> {
        inner.deserialize_any(self)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Shown, E> {
        Ok(Shown::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Shown, E> {
        Ok(Shown::Signed(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Shown, E> {
        Ok(Shown::Unsigned(value))
    }

    fn visit_f32<E: de::Error>(self, value: f32) -> Result<Shown, E> {
        // Converted by its shortest decimal form, so that 0.1 is not shown as 0.10000000149011612.
        Ok(Shown::Float(value.to_string().parse().unwrap_or_else(|_| f64::from(value))))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Shown, E> {
        Ok(Shown::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Shown, E> {
        Ok(Shown::Text(value.to_owned()))
    }

    fn visit_bytes<E: de::Error>(self, value: &[u8]) -> Result<Shown, E> {
        Ok(Shown::Bytes(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shown, A::Error> {
        // The announced length is not trusted: no capacity is reserved.
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Shown::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shown, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Shown::Map(entries))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Shown, A::Error> {
        let (name, value) = data.variant::<Shown>()?;
        Ok(Shown::Map(vec![(name, value.newtype_variant()?)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_json_on_one_line() {
        let value = Shown::Map(vec![
            (Shown::Text("a\n\"b\"\\\u{1b}[31m".into()), Shown::Float(1.0)),
            (Shown::Signed(-1), Shown::Bytes(vec![0, 0xff])),
            (
                Shown::Null,
                Shown::List(vec![
                    Shown::Bool(true),
                    Shown::Float(f64::NAN),
                    Shown::Unsigned(u64::MAX),
                ]),
            ),
        ]);
        let json = value.to_json();
        assert_eq!(
            json,
            concat!(
                r#"{"a\n\"b\"\\\u001b[31m":1.0,"-1":{"$bytes":"00ff"},"#,
                r#""null":[true,{"$float":"NaN"},18446744073709551615]}"#
            )
        );
        serde_json::from_str::<serde_json::Value>(&json).unwrap();
    }
}
