//! A dialect's file and those it extends, put together into one.
//!
//! Tables are merged key by key, and what the nearer file says counts; a list (`[[routes]]`) takes the other's place as
//! a whole; definitions of jq are added to. It does not know what the keys mean.
//!
//! Invariant: every offset into the text put together belongs to one file, and says where it stands in that.

use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Source;
use super::file::{self, DialectFile};

/// The name of the dialect that a file extends, if it says one.
pub fn extended(text: &str) -> Option<String> {
    let (table, _) = DeTable::parse_recoverable(text);
    let named = table.get_ref().get("extends")?;
    match named.get_ref() {
        DeValue::String(name) => Some(name.to_string()),
        _ => None,
    }
}

/// Where one of the files stands in the text.
#[derive(Debug)]
struct Layer {
    start: usize,
    path: PathBuf,
}

/// The text of all files, the one that is extended first.
#[derive(Debug)]
pub(super) struct Layers {
    pub(super) text: String,
    layers: Vec<Layer>,
}

/// What is wrong with the text itself.
pub(super) struct Unreadable {
    pub(super) offset: usize,
    pub(super) message: String,
}

impl Layers {
    /// The text of a dialect's file behind that of the file it extends.
    pub(super) fn of(source: &Source) -> Self {
        let mut chain = vec![source];
        while let Some(base) = chain.last().and_then(|last| last.base.as_deref()) {
            chain.push(base);
        }
        let mut layers = Self {
            text: String::new(),
            layers: Vec::new(),
        };
        for source in chain.into_iter().rev() {
            if !layers.text.is_empty() {
                layers.text.push('\n');
            }
            layers.layers.push(Layer {
                start: layers.text.len(),
                path: source.path.clone(),
            });
            layers.text.push_str(&source.text);
        }
        layers
    }

    /// Where the dialect's own file begins.
    pub(super) fn own(&self) -> usize {
        self.layers.last().map_or(0, |layer| layer.start)
    }

    /// File, line and column of an offset.
    pub(super) fn place(&self, offset: usize) -> (&Path, usize, usize) {
        let at = self.layers.partition_point(|layer| layer.start <= offset);
        let Some(layer) = self.layers.get(at.saturating_sub(1)) else {
            return (Path::new(""), 1, 1);
        };
        let end = self.layers.get(at).map_or(self.text.len(), |it| it.start);
        let text = self.text.get(layer.start..end).unwrap_or_default();
        let (line, column) = file::place(text, offset - layer.start);
        (&layer.path, line, column)
    }

    /// What the files say together, and the definitions of each.
    pub(super) fn read(&self) -> Result<(DialectFile, Vec<Spanned<String>>), Unreadable> {
        let unreadable = |error: &toml::de::Error| Unreadable {
            offset: error.span().map_or(self.own(), |span| span.start),
            message: error.message().to_owned(),
        };
        // Each is read where it stands: what is before it is blank.
        let starts = self.layers.iter().map(|layer| layer.start);
        let ends = starts.clone().skip(1).map(|next| next - 1);
        let ends = ends.chain([self.text.len()]);
        let texts = starts.zip(ends).map(|(start, end)| {
            let own = self.text.get(start..end).unwrap_or_default();
            format!("{:start$}{own}", "")
        });
        let texts: Vec<_> = texts.collect();
        let mut definitions = Vec::new();
        let mut whole = Spanned::new(0..0, DeTable::default());
        for text in &texts {
            let table = DeTable::parse(text).map_err(|error| unreadable(&error))?;
            if let Some(each) = table.get_ref().get("definitions")
                && let DeValue::String(jq) = each.get_ref()
            {
                definitions.push(Spanned::new(each.span(), jq.to_string()));
            }
            merge(whole.get_mut(), table.into_inner());
        }
        let file = DialectFile::deserialize(toml::Deserializer::from(whole));
        let file = file.map_err(|error| unreadable(&error))?;
        Ok((file, definitions))
    }
}

/// Puts what `over` says into `into`. As deep as a parsed text is nested, which the parser bounds.
fn merge<'a>(into: &mut DeTable<'a>, over: DeTable<'a>) {
    for (key, value) in over {
        match (into.get_mut(&**key.get_ref()), value.get_ref()) {
            (Some(known), DeValue::Table(_)) if known.get_ref().is_table() => {
                if let (DeValue::Table(known), DeValue::Table(over)) =
                    (known.get_mut(), value.into_inner())
                {
                    merge(known, over);
                }
            }
            (Some(known), _) => *known = value,
            (None, _) => {
                into.insert(key, value);
            }
        }
    }
}
