//! Safetensors: a JSON header with its length before it, then the data.

use ::safetensors::tensor::{Dtype as Stored, Metadata};

use super::source::Source;
use super::unwrap::Found;
use super::{CheckpointError, Dtype, Result, TensorInfo, contiguous};

/// The limit that the format itself sets.
const HEADER_LIMIT: u64 = 100_000_000;

pub(super) fn open(source: &mut Source) -> Result<Found> {
    let length: [u8; 8] = source.read_at(0, 8)?.try_into().expect("eight bytes were asked for");
    let length = u64::from_le_bytes(length);
    if length > HEADER_LIMIT {
        return Err(CheckpointError::TooLarge { what: "the safetensors header", limit: HEADER_LIMIT });
    }
    let start = 8 + length;
    let has = source.len();
    if start > has {
        return Err(CheckpointError::Truncated { what: "the safetensors header".into(), needs: start, has });
    }
    // Parsing checks that the tensors lie one behind the other without gap or overlap, each as long as its shape says.
    let metadata: Metadata = serde_json::from_slice(&source.read_at(8, length)?).map_err(CheckpointError::Header)?;

    let mut found = Found::default();
    found.metadata.extend(metadata.metadata().clone().unwrap_or_default());
    for (name, info) in metadata.tensors() {
        let dtype = dtype(info.dtype).ok_or_else(|| CheckpointError::UnsupportedDtype {
            tensor: name.clone(),
            dtype: format!("{:?}", info.dtype),
        })?;
        let (from, to) = info.data_offsets;
        let end = start.saturating_add(to as u64);
        if end > has {
            return Err(CheckpointError::Truncated { what: format!("tensor `{name}`"), needs: end, has });
        }
        let numbers = ((to - from) / dtype.bytes()) as u64;
        let strides = contiguous(&info.shape);
        let shape = info.shape.clone();
        let info = TensorInfo::place(&name, dtype, shape, strides, start + from as u64, 0, numbers)?;
        found.tensors.push((name, info));
    }
    Ok(found)
}

fn dtype(stored: Stored) -> Option<Dtype> {
    Some(match stored {
        Stored::F64 => Dtype::F64,
        Stored::F32 => Dtype::F32,
        Stored::F16 => Dtype::F16,
        Stored::BF16 => Dtype::Bf16,
        Stored::F8_E4M3 => Dtype::F8E4M3,
        Stored::F8_E5M2 => Dtype::F8E5M2,
        Stored::I64 => Dtype::I64,
        Stored::I32 => Dtype::I32,
        Stored::I16 => Dtype::I16,
        Stored::I8 => Dtype::I8,
        Stored::U8 => Dtype::U8,
        Stored::BOOL => Dtype::Bool,
        _ => return None,
    })
}
