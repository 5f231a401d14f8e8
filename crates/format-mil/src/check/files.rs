//! The weight files: structure of the records, and references to them.

use std::collections::BTreeSet;

use super::{Defect, Report};
use crate::visit::visit_values;
use crate::{Package, proto};

pub(super) fn check(package: &Package, report: &mut Report) {
    for (name, file) in package.weight_files() {
        let mut used = BTreeSet::new();
        let blocks = package.program().functions.values().flat_map(|f| f.block_specializations.values());
        for block in blocks {
            visit_values(block, &mut |value| {
                if let Some(proto::ValueKind::BlobFile(blob)) = &value.kind
                    && blob.file_name == *name
                {
                    used.insert(blob.offset);
                }
            });
        }
        let place =
            file.path().file_name().map_or_else(|| name.clone(), |n| n.to_string_lossy().into_owned());
        match file.records() {
            Ok(records) => {
                let records: BTreeSet<u64> = records.iter().map(|record| record.offset).collect();
                for &offset in used.difference(&records) {
                    report.error(&place, Defect::NoRecord { offset });
                }
                for &offset in records.difference(&used) {
                    report.note(&place, Defect::Unreferenced { offset });
                }
            }
            Err(error) => report.error(&place, error),
        }
    }
}
