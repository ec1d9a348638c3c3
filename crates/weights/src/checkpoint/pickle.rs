//! The part of Python's pickle machine that builds dictionaries of tensors, and nothing else of it.
//!
//! A pickle is a program for a stack machine, and a full machine may call any function that it names. This one knows six
//! names, each a plain constructor, and names that stand as keys and are never called; any other name is an error before
//! anything is done with it.
//!
//! Objects live on a [`Heap`] and refer to each other by index, as a list may be filled after something else took hold of
//! it. Every limit is set so that a hostile file costs a bounded amount of memory.

use std::collections::HashMap;
use std::io::Read;
use std::ops::Index;
use std::rc::Rc;

use super::{CheckpointError, Dtype, Result};

/// No honest pickle is longer: tensors lie beside it, not in it.
const BYTES_LIMIT: u64 = 32 << 20;
/// No honest pickle makes more objects: some fifty per tensor.
const OBJECTS_LIMIT: usize = 1 << 21;
/// No honest tensor has more sides.
const RANK_LIMIT: usize = 16;
/// No honest function has a longer name.
const NAME_LIMIT: usize = 256;

/// The index of an object on the heap.
pub(super) type Ref = usize;

/// A Python object, as far as checkpoints need them.
#[derive(Debug, Clone)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// An integer that does not fit 64 bits.
    Long,
    Float,
    Text(Rc<str>),
    Bytes,
    List(Vec<Ref>),
    Tuple(Vec<Ref>),
    Dictionary(Vec<(Ref, Ref)>),
    Global(Global),
    Storage(Storage),
    Tensor(View),
}

impl Value {
    /// What it is, for people.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::None => "nothing",
            Self::Bool(_) => "a truth value",
            Self::Int(_) | Self::Long | Self::Float => "a number",
            Self::Text(_) => "a text",
            Self::Bytes => "bytes",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Dictionary(_) => "a dictionary",
            Self::Global(_) => "a function",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

/// The functions and classes that a pickle may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
    /// A class of PyTorch Lightning, which names the entries of its callbacks: it is never called.
    Name,
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", storage) => Self::Storage(match storage.strip_suffix("Storage")? {
                "Double" => Dtype::F64,
                "Float" => Dtype::F32,
                "Half" => Dtype::F16,
                "BFloat16" => Dtype::Bf16,
                "Long" => Dtype::I64,
                "Int" => Dtype::I32,
                "Short" => Dtype::I16,
                "Char" => Dtype::I8,
                "Byte" => Dtype::U8,
                "Bool" => Dtype::Bool,
                _ => return None,
            }),
            (module, _) if module.starts_with("pytorch_lightning.callbacks.") => Self::Name,
            _ => return None,
        })
    }
}

/// A run of numbers kept outside of the pickle.
#[derive(Debug, Clone)]
pub(super) struct Storage {
    pub(super) key: Rc<str>,
    pub(super) dtype: Dtype,
    /// How many numbers it has.
    pub(super) count: u64,
    /// The first number that is meant, where an old file cuts one storage out of another.
    pub(super) first: u64,
}

/// A tensor: a shape laid over a storage.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) storage: Storage,
    pub(super) first: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// All objects that a pickle made.
#[derive(Debug, Default)]
pub(super) struct Heap(Vec<Value>);

impl Heap {
    /// Every storage that the pickle names.
    pub(super) fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.0.iter().filter_map(|value| match value {
            Value::Storage(storage) => Some(storage),
            _ => None,
        })
    }
}

impl Index<Ref> for Heap {
    type Output = Value;
    fn index(&self, at: Ref) -> &Value {
        &self.0[at]
    }
}

/// Runs the pickle at the start of `input`, and leaves `input` right behind it.
pub(super) fn run(input: impl Read) -> Result<(Heap, Ref)> {
    let (stack, marks) = (Vec::new(), Vec::new());
    Machine { input, at: 0, heap: Heap::default(), stack, marks, memo: HashMap::new(), copied: 0 }.run()
}

struct Machine<R> {
    input: R,
    at: u64,
    heap: Heap,
    stack: Vec<Ref>,
    /// The heights of the stack at which open marks stand.
    marks: Vec<usize>,
    memo: HashMap<u64, Ref>,
    /// How many entries of lists were copied into dictionaries.
    copied: usize,
}

impl<R: Read> Machine<R> {
    fn run(mut self) -> Result<(Heap, Ref)> {
        loop {
            if self.stack.len().max(self.marks.len()) > OBJECTS_LIMIT {
                return Err(CheckpointError::TooLarge { what: "the stack of the pickle", limit: OBJECTS_LIMIT as u64 });
            }
            let at = self.at;
            match self.byte()? {
                // PROTO, FRAME: say nothing that is needed here
                0x80 => drop(self.byte()?),
                0x95 => drop(self.number::<8>()?),
                b'.' => return Ok((std::mem::take(&mut self.heap), self.pop()?)),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_to_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'N' => self.push(Value::None)?,
                0x88 => self.push(Value::Bool(true))?,
                0x89 => self.push(Value::Bool(false))?,
                b'K' => self.push_number::<1>()?,
                b'M' => self.push_number::<2>()?,
                b'J' => {
                    let value = self.number::<4>()? as u32;
                    self.push(Value::Int(i64::from(value as i32)))?;
                }
                0x8a => {
                    let count = self.number::<1>()?;
                    self.push_long(count)?;
                }
                0x8b => {
                    let count = self.number::<4>()?;
                    self.push_long(count)?;
                }
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Float)?;
                }
                0x8c => self.push_text::<1>()?,
                b'X' => self.push_text::<4>()?,
                0x8d => self.push_text::<8>()?,
                b'U' => self.push_text::<1>()?, // the text of Python 2
                b'T' => self.push_text::<4>()?,
                b'C' => self.push_bytes::<1>()?,
                b'B' => self.push_bytes::<4>()?,
                0x8e => self.push_bytes::<8>()?,
                b']' => self.push(Value::List(Vec::new()))?,
                b')' => self.push(Value::Tuple(Vec::new()))?,
                b'}' => self.push(Value::Dictionary(Vec::new()))?,
                b'l' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::List(items))?;
                }
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::Tuple(items))?;
                }
                b'd' => {
                    let items = self.pop_to_mark()?;
                    let entries = self.pairs(items)?;
                    self.push(Value::Dictionary(entries))?;
                }
                count @ 0x85..=0x87 => {
                    let mut items = Vec::new();
                    for _ in 0x85..=count {
                        items.push(self.pop()?);
                    }
                    items.reverse();
                    self.push(Value::Tuple(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.append(items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.insert(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.insert(items)?;
                }
                b'q' => self.remember::<1>()?,
                b'r' => self.remember::<4>()?,
                0x94 => {
                    let top = self.top()?;
                    self.memo.insert(self.memo.len() as u64, top);
                }
                b'h' => self.recall::<1>()?,
                b'j' => self.recall::<4>()?,
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push_global(&module, &name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop_text()?, self.pop_text()?);
                    self.push_global(&module, &name)?;
                }
                b'R' => self.call()?,
                b'b' => self.set_state()?,
                b'Q' => self.push_storage()?,
                opcode => return Err(CheckpointError::Opcode { opcode, at }),
            }
        }
    }

    fn invalid<T>(&self, problem: &'static str) -> Result<T> {
        Err(CheckpointError::Pickle { at: self.at, problem })
    }

    fn take(&mut self, count: u64) -> Result<Vec<u8>> {
        if count > BYTES_LIMIT - self.at {
            return Err(CheckpointError::TooLarge { what: "the pickle", limit: BYTES_LIMIT });
        }
        let mut bytes = Vec::new(); // grows with what is really there
        self.input.by_ref().take(count).read_to_end(&mut bytes)?;
        self.at += bytes.len() as u64;
        if (bytes.len() as u64) < count {
            return self.invalid("it ends too early");
        }
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.number::<1>()? as u8)
    }

    /// Reads an unsigned little-endian number of `N` bytes.
    fn number<const N: usize>(&mut self) -> Result<u64> {
        if N as u64 > BYTES_LIMIT - self.at {
            return Err(CheckpointError::TooLarge { what: "the pickle", limit: BYTES_LIMIT });
        }
        let mut bytes = [0; 8];
        match self.input.read_exact(&mut bytes[..N]) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return self.invalid("it ends too early");
            }
            read => read?,
        }
        self.at += N as u64;
        Ok(u64::from_le_bytes(bytes))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return self.text(line),
                byte => line.push(byte),
            }
        }
    }

    fn text(&self, bytes: Vec<u8>) -> Result<String> {
        String::from_utf8(bytes).or_else(|_| self.invalid("a text is not UTF-8"))
    }

    fn push(&mut self, value: Value) -> Result<()> {
        if self.heap.0.len() >= OBJECTS_LIMIT {
            return Err(CheckpointError::TooLarge {
                what: "the number of objects in the pickle",
                limit: OBJECTS_LIMIT as u64,
            });
        }
        self.stack.push(self.heap.0.len());
        self.heap.0.push(value);
        Ok(())
    }

    fn push_number<const N: usize>(&mut self) -> Result<()> {
        let value = self.number::<N>()?;
        self.push(Value::Int(value as i64))
    }

    fn push_long(&mut self, count: u64) -> Result<()> {
        let bytes = self.take(count)?;
        let value = if bytes.len() > 8 {
            Value::Long
        } else {
            let negative = bytes.last().is_some_and(|high| high & 0x80 != 0);
            let mut extended = [if negative { 0xFF } else { 0 }; 8];
            extended[..bytes.len()].copy_from_slice(&bytes);
            Value::Int(i64::from_le_bytes(extended))
        };
        self.push(value)
    }

    fn push_text<const N: usize>(&mut self) -> Result<()> {
        let count = self.number::<N>()?;
        let bytes = self.take(count)?;
        let text = self.text(bytes)?;
        self.push(Value::Text(text.into()))
    }

    fn push_bytes<const N: usize>(&mut self) -> Result<()> {
        let count = self.number::<N>()?;
        self.take(count)?;
        self.push(Value::Bytes)
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<()> {
        if module.len() + name.len() > NAME_LIMIT {
            return self.invalid("a name is too long");
        }
        match Global::find(module, name) {
            Some(global) => self.push(Value::Global(global)),
            None => Err(CheckpointError::Forbidden { global: format!("{module}.{name}") }),
        }
    }

    fn top(&self) -> Result<Ref> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(top) if self.stack.len() > floor => Ok(*top),
            _ => self.invalid("the stack is empty"),
        }
    }

    fn pop(&mut self) -> Result<Ref> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_text(&mut self) -> Result<Rc<str>> {
        let top = self.pop()?;
        match &self.heap[top] {
            Value::Text(text) => Ok(text.clone()),
            _ => self.invalid("a name is no text"),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Ref>> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => self.invalid("there is no mark"),
        }
    }

    fn remember<const N: usize>(&mut self) -> Result<()> {
        let slot = self.number::<N>()?;
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall<const N: usize>(&mut self) -> Result<()> {
        let slot = self.number::<N>()?;
        match self.memo.get(&slot) {
            Some(&at) => self.stack.push(at),
            None => return self.invalid("it recalls what it never remembered"),
        }
        Ok(())
    }

    fn pairs(&self, items: Vec<Ref>) -> Result<Vec<(Ref, Ref)>> {
        match items.as_chunks() {
            (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
            _ => self.invalid("a key has no value"),
        }
    }

    fn append(&mut self, items: Vec<Ref>) -> Result<()> {
        let top = self.top()?;
        match &mut self.heap.0[top] {
            Value::List(list) => list.extend(items),
            _ => return self.invalid("it appends to what is no list"),
        }
        Ok(())
    }

    fn insert(&mut self, items: Vec<Ref>) -> Result<()> {
        let pairs = self.pairs(items)?;
        let top = self.top()?;
        match &mut self.heap.0[top] {
            Value::Dictionary(entries) => entries.extend(pairs),
            _ => return self.invalid("it inserts into what is no dictionary"),
        }
        Ok(())
    }

    /// REDUCE: calls a function with a tuple of arguments.
    fn call(&mut self) -> Result<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Value::Global(function) = self.heap[function] else {
            return self.invalid("it calls what is no function");
        };
        let Value::Tuple(arguments) = &self.heap[arguments] else {
            return self.invalid("the arguments are no tuple");
        };
        let value = match (function, arguments.as_slice()) {
            (Global::OrderedDict, []) => Value::Dictionary(Vec::new()),
            (Global::OrderedDict, &[pairs]) => Value::Dictionary(self.entries(pairs)?),
            (Global::RebuildTensor, &[storage, first, shape, strides, ..]) => {
                Value::Tensor(self.view(storage, first, shape, strides)?)
            }
            (Global::RebuildParameter, &[data, ..]) => match &self.heap[data] {
                Value::Tensor(view) => Value::Tensor(view.clone()),
                _ => return self.invalid("a parameter holds no tensor"),
            },
            _ => return self.invalid("a function has the wrong arguments"),
        };
        self.push(value)
    }

    /// The entries of a dictionary that is made from a list of pairs.
    fn entries(&mut self, pairs: Ref) -> Result<Vec<(Ref, Ref)>> {
        let Value::List(pairs) = &self.heap[pairs] else {
            return self.invalid("a dictionary is made from what is no list");
        };
        self.copied += pairs.len(); // one list may be copied many times over
        if self.copied > OBJECTS_LIMIT {
            return Err(CheckpointError::TooLarge {
                what: "the dictionaries of the pickle",
                limit: OBJECTS_LIMIT as u64,
            });
        }
        let entry = |&pair: &Ref| match &self.heap[pair] {
            Value::List(pair) | Value::Tuple(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
            _ => self.invalid("a dictionary is made from what are no pairs"),
        };
        pairs.iter().map(entry).collect()
    }

    fn view(&self, storage: Ref, first: Ref, shape: Ref, strides: Ref) -> Result<View> {
        let Value::Storage(storage) = self.heap[storage].clone() else {
            return self.invalid("a tensor has no storage");
        };
        let first = self.natural(first)?;
        let (shape, strides) = (self.naturals(shape)?, self.naturals(strides)?);
        if shape.len() != strides.len() {
            return self.invalid("a tensor has not as many strides as sides");
        }
        Ok(View { storage, first, shape, strides })
    }

    fn natural(&self, at: Ref) -> Result<u64> {
        match self.heap[at] {
            Value::Int(value) if value >= 0 => Ok(value as u64),
            _ => self.invalid("a size is no natural number"),
        }
    }

    fn naturals(&self, at: Ref) -> Result<Vec<usize>> {
        let (Value::Tuple(items) | Value::List(items)) = &self.heap[at] else {
            return self.invalid("a shape is no tuple");
        };
        if items.len() > RANK_LIMIT {
            return self.invalid("a tensor has too many sides");
        }
        let natural = |&item: &Ref| self.natural(item).map(|value| value as usize);
        items.iter().map(natural).collect()
    }

    /// BUILD: an ordered dictionary may carry attributes (PyTorch keeps version numbers there), which are dropped.
    fn set_state(&mut self) -> Result<()> {
        self.pop()?;
        let top = self.top()?;
        match self.heap[top] {
            Value::Dictionary(_) => Ok(()),
            _ => self.invalid("it sets the state of what is no dictionary"),
        }
    }

    /// BINPERSID: PyTorch's word for a storage, `("storage", type, key, device, count)` and in old files a view of another.
    fn push_storage(&mut self) -> Result<()> {
        let id = self.pop()?;
        let Value::Tuple(parts) = &self.heap[id] else {
            return self.invalid("a storage is no tuple");
        };
        let &[tag, dtype, key, _device, count, ref cut @ ..] = parts.as_slice() else {
            return self.invalid("a storage lacks parts");
        };
        let (Value::Text(tag), Value::Global(Global::Storage(dtype)), Value::Text(key)) =
            (&self.heap[tag], &self.heap[dtype], &self.heap[key])
        else {
            return self.invalid("a storage has parts of the wrong kind");
        };
        if &**tag != "storage" {
            return self.invalid("an external object is no storage");
        }
        let first = match cut.first().map(|&cut| &self.heap[cut]) {
            None | Some(Value::None) => 0,
            Some(Value::Tuple(cut)) if cut.len() == 3 => self.natural(cut[1])?,
            Some(_) => return self.invalid("a storage is cut out of another in an unknown way"),
        };
        let storage = Storage { key: key.clone(), dtype: *dtype, count: self.natural(count)?, first };
        self.push(Value::Storage(storage))
    }
}
