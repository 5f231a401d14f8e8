//! `q35-convert plan`: the unit on which Apple's Core ML would run each operation of converted packages.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::ensure;
use q35_artefact::ArtefactDir;
use q35_backend::{ComputeUnits, PlannedOperation, compute_plan};
use serde_json::json;

use crate::backend::{VariantArg, compiled_cache};
use crate::commands::inspect_package::is_package;
use crate::context::Context;
use crate::exit::Outcome;
use crate::output::{Table, json as print_json, line};

/// Arguments of `q35-convert plan`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A directory of Core ML packages, or one package
    #[arg(value_name = "DIR")]
    pub path: PathBuf,

    /// The variant.
    #[command(flatten)]
    pub variant: VariantArg,

    /// Compute units that Core ML may use
    #[arg(long, value_enum, default_value_t, value_name = "UNITS")]
    pub compute_units: ComputeUnits,
}

/// Runs `q35-convert plan`.
///
/// # Errors
/// There are no packages, this is no system of Apple's, or Core ML refuses one.
pub fn run(args: &Args, context: Context) -> anyhow::Result<Outcome> {
    let packages = match is_package(&args.path) {
        true => vec![args.path.clone()],
        false => ArtefactDir::recognise(&args.path, args.variant.name())?.packages(),
    };
    ensure!(!packages.is_empty(), "{} holds no Core ML packages", args.path.display());
    let cache = compiled_cache();
    let mut plans = Vec::new();
    for package in packages {
        let plan = compute_plan(&package, args.compute_units, cache.as_deref())?;
        plans.push((package.file_name().unwrap_or_default().to_string_lossy().into_owned(), plan));
    }
    if context.json {
        let operation = |package: &String, operation: &PlannedOperation| {
            json!({
                "package": package, "function": operation.function, "operator": operation.operator,
                "output": operation.output, "unit": operation.preferred, "cost": operation.cost,
            })
        };
        let all =
            plans.iter().flat_map(|(package, plan)| plan.iter().map(move |one| operation(package, one)));
        print_json(&all.collect::<Vec<_>>())?;
    } else {
        line(summary(&plans).render())?;
    }
    Ok(Outcome::Done)
}

/// Operations and cost by unit and operator, without constants.
fn summary(plans: &[(String, Vec<PlannedOperation>)]) -> Table {
    let mut groups: BTreeMap<(&str, &str, &str, &str), (usize, f64)> = BTreeMap::new();
    for (package, plan) in plans {
        for operation in plan {
            let Some(unit) = operation.preferred else { continue };
            let group = groups.entry((package, &operation.function, unit, &operation.operator)).or_default();
            group.0 += 1;
            group.1 += operation.cost.unwrap_or(0.0);
        }
    }
    let mut table = Table::with_titles(["package", "function", "unit", "operator", "operations", "cost"]);
    for ((package, function, unit, operator), (count, cost)) in groups {
        let cells = [package, function, unit, operator].map(str::to_owned);
        let [package, function, unit, operator] = cells;
        let cost = format!("{:.1} %", 100.0 * cost);
        table.row([package, function, unit, operator, count.to_string(), cost]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_counted_by_unit_and_operator() {
        let operation = |operator: &str, preferred, cost| PlannedOperation {
            function: "decode".to_owned(),
            operator: operator.to_owned(),
            output: String::new(),
            preferred,
            cost,
        };
        let plan = vec![
            operation("const", None, None),
            operation("ios18.linear", Some("Neural Engine"), Some(0.25)),
            operation("ios18.linear", Some("Neural Engine"), Some(0.5)),
            operation("ios18.gather", Some("CPU"), None),
        ];
        let text = summary(&[("model.mlpackage".to_owned(), plan)]).render();
        let rows: Vec<Vec<&str>> = text.lines().skip(1).map(|row| row.split_whitespace().collect()).collect();
        assert!(rows.contains(&vec!["model.mlpackage", "decode", "CPU", "ios18.gather", "1", "0.0", "%"]));
        assert!(rows.iter().any(|row| row.ends_with(&["ios18.linear", "2", "75.0", "%"])), "{text}");
        assert!(!text.contains("const"));
    }
}
