//! What is told of a snapshot.

use bytes::Bytes;
use palimpsest_proto::internal::v1::SnapshotReport;
use palimpsest_proto::internal::v1::snapshot_report::Event;

/// A report of something that was done (`error` is empty), or could not be.
pub(super) fn report(name: Bytes, event: Event, bytes: u64, error: &str) -> SnapshotReport {
    SnapshotReport {
        name,
        event: event.into(),
        bytes,
        error: error.into(),
        waited: false,
    }
}
