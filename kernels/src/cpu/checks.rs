//! Checks that operations on items share.

use std::ops::Range;

use crate::error::{Error, Result};

/// Checks rows and KV head of an item.
pub(crate) fn check_item(
    op: &'static str,
    item_rows: &Range<usize>,
    rows: usize,
    kv_head: usize,
    kv_heads: usize,
) -> Result<()> {
    if item_rows.end > rows {
        return Err(Error::Index {
            op,
            what: "end of rows",
            index: item_rows.end,
            len: rows,
        });
    }
    if item_rows.start > item_rows.end {
        return Err(Error::Index {
            op,
            what: "start of rows",
            index: item_rows.start,
            len: item_rows.end,
        });
    }
    if kv_head >= kv_heads {
        return Err(Error::Index {
            op,
            what: "KV head",
            index: kv_head,
            len: kv_heads,
        });
    }
    Ok(())
}
