//! The two formats of `torch.save`: a zip archive since PyTorch 1.6, a stream of pickles before.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufReader, Read};

use zip::read::{ArchiveOffset, Config};
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{self, Heap, Ref, Storage, Value};
use super::source::Source;
use super::unwrap::{self, Found};
use super::{CheckpointError, Result, TensorInfo};

/// How every old stream begins: a pickle of protocol 2 that holds one long number.
pub(super) const LEGACY_START: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

/// Where a storage begins in the file, and how many bytes it has there.
type Place = (u64, u64);

/// Opens a zip archive: `<name>/data.pkl` is the object, and `<name>/data/<key>` the storages.
pub(super) fn open_zip(source: &mut Source) -> Result<Found> {
    let len = source.len();
    // Left to look for the start of the archive, `zip` takes a later entry for the first one if that has a name of 30 letters.
    let at_the_start = Config { archive_offset: ArchiveOffset::Known(0) };
    let mut archive = ZipArchive::with_config(at_the_start, source.input_at(0)?)?;
    let is_object = |name: &[u8]| name == b"data.pkl" || name.ends_with(b"/data.pkl");
    let object = archive.file_names_raw().position(is_object);
    let object = object.ok_or_else(|| CheckpointError::MissingEntry { entry: "data.pkl".into() })?;

    let entry = archive.by_index(object)?;
    let folder = entry.name()?.strip_suffix("data.pkl").expect("it was found by this suffix").to_owned();
    let (heap, root) = pickle::run(BufReader::new(entry))?;

    if let Some(order) = archive.index_for_name(&format!("{folder}byteorder")) {
        let mut text = Vec::new();
        archive.by_index(order)?.take(16).read_to_end(&mut text)?;
        if text.trim_ascii() == b"big" {
            return Err(CheckpointError::BigEndian);
        }
    }
    collect(&heap, root, |storage| {
        let name = format!("{folder}data/{}", storage.key);
        let missing = || CheckpointError::MissingEntry { entry: name.clone() };
        let entry = archive.by_index(archive.index_for_name(&name).ok_or_else(missing)?)?;
        if entry.compression() != CompressionMethod::Stored {
            return Err(CheckpointError::Compressed { entry: name });
        }
        let start = entry.data_start().ok_or_else(missing)?;
        let end = start.saturating_add(entry.size());
        if end > len {
            return Err(CheckpointError::Truncated { what: format!("`{name}`"), needs: end, has: len });
        }
        Ok((start, entry.size()))
    })
}

/// Opens a stream: a magic number, a version, facts about the machine, the object, the keys of the storages, and then each
/// storage with its length before it.
pub(super) fn open_legacy(source: &mut Source) -> Result<Found> {
    let len = source.len();
    let mut input = Counted { input: BufReader::new(source.input_at(0)?), count: 0 };
    for _magic_and_version in 0..2 {
        pickle::run(&mut input)?;
    }
    let (machine, facts) = pickle::run(&mut input)?;
    if is_big_endian(&machine, facts) {
        return Err(CheckpointError::BigEndian);
    }
    let (heap, root) = pickle::run(&mut input)?;
    let (keys_heap, keys) = pickle::run(&mut input)?;
    let Value::List(keys) = &keys_heap[keys] else {
        return Err(CheckpointError::Pickle { at: 0, problem: "the keys of the storages are no list" });
    };
    let mut at = input.count;

    let sizes: HashMap<&str, u64> =
        heap.storages().map(|storage| (&*storage.key, storage.dtype.bytes() as u64)).collect();
    let mut places: HashMap<&str, Place> = HashMap::new();
    for &key in keys {
        let Value::Text(key) = &keys_heap[key] else {
            return Err(CheckpointError::Pickle { at: 0, problem: "the key of a storage is no text" });
        };
        let truncated = |needs| CheckpointError::Truncated { what: format!("storage `{key}`"), needs, has: len };
        let start = at.saturating_add(8);
        if start > len {
            return Err(truncated(start));
        }
        let count: [u8; 8] = source.read_at(at, 8)?.try_into().expect("eight bytes were asked for");
        let Some(&size) = sizes.get(&**key) else {
            return Err(CheckpointError::Pickle { at: 0, problem: "a storage belongs to no tensor" });
        };
        let bytes = u64::from_le_bytes(count).saturating_mul(size);
        at = start.saturating_add(bytes);
        if at > len {
            return Err(truncated(at));
        }
        places.insert(key, (start, bytes));
    }
    collect(&heap, root, |storage| {
        let missing = || CheckpointError::MissingEntry { entry: storage.key.to_string() };
        places.get(&*storage.key).copied().ok_or_else(missing)
    })
}

/// Unwraps the object and finds the place of each tensor in it.
fn collect(heap: &Heap, root: Ref, mut place: impl FnMut(&Storage) -> Result<Place>) -> Result<Found> {
    let mut entries = BTreeMap::new(); // of equal keys the last one counts, as in Python
    for &(key, value) in unwrap::weights(heap, root)? {
        if let Value::Text(name) = &heap[key] {
            entries.insert(name, value);
        }
    }
    let mut found = Found::default();
    let mut places: HashMap<&str, Place> = HashMap::new();
    for (name, value) in entries {
        let Value::Tensor(view) = &heap[value] else {
            found.others.push(name.to_string());
            continue;
        };
        let storage = &view.storage;
        let (start, bytes) = match places.get(&*storage.key) {
            Some(place) => *place,
            None => *places.entry(&storage.key).or_insert(place(storage)?),
        };
        let has = bytes / storage.dtype.bytes() as u64;
        let outside = |needs| CheckpointError::Outside { tensor: name.to_string(), needs, has };
        if storage.count > has {
            return Err(outside(storage.count));
        }
        let first = storage.first.checked_add(view.first).ok_or_else(|| outside(u64::MAX))?;
        let (shape, strides) = (view.shape.clone(), view.strides.clone());
        let info = TensorInfo::place(name, storage.dtype, shape, strides, start, first, has)?;
        found.tensors.push((name.to_string(), info));
    }
    Ok(found)
}

fn is_big_endian(heap: &Heap, facts: Ref) -> bool {
    let Value::Dictionary(facts) = &heap[facts] else { return false };
    facts.iter().any(|&(key, value)| {
        matches!(&heap[key], Value::Text(key) if **key == *"little_endian") && matches!(heap[value], Value::Bool(false))
    })
}

/// Counts the bytes that are read through it.
struct Counted<R> {
    input: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.count += count as u64;
        Ok(count)
    }
}
