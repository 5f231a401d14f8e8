//! `q35-convert inspect` of Core ML packages: functions, features, operators, bytes, and reported limits of the Neural
//! Engine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use q35_format_mil::{Finding, InspectedFunction, Inspection, Package, Report, Risk, check, inspect};
use serde_json::{Value, json};

use crate::context::Context;
use crate::exit::Outcome;
use crate::output::{Table, bytes, json as print_json, line, note};

/// A package with the results of its check and its inspection.
struct Inspected {
    path: PathBuf,
    report: Report,
    inspection: Inspection,
}

/// True if the path is a package itself, also under another name.
pub fn is_package(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind == "mlpackage") || path.join("Manifest.json").is_file()
}

/// Prints all packages. The answer is no if one of them is malformed.
pub fn run(paths: &[PathBuf], context: Context) -> anyhow::Result<Outcome> {
    let mut all = Vec::new();
    for path in paths {
        let package = Package::open(path)?;
        let (report, inspection) = (check(&package), inspect(&package));
        all.push(Inspected { path: path.clone(), report, inspection });
    }
    if context.json {
        print_json(&json!({
            "kind": "coreml",
            "packages": all.iter().map(Inspected::json).collect::<Vec<_>>(),
        }))?;
    } else {
        all.iter().try_for_each(Inspected::print)?;
        note(
            "note: nothing here was run by Apple's Core ML; what is said of the Neural Engine are others' reports, and \
             some contradict each other",
        );
    }
    let sound = all.iter().all(|package| package.report.errors.is_empty());
    Ok(if sound { Outcome::Done } else { Outcome::No })
}

impl Inspected {
    fn print(&self) -> anyhow::Result<()> {
        let (inspection, report) = (&self.inspection, &self.report);
        line(format!(
            "{}: Core ML program, specification {}, runs `{}` by default",
            self.path.display(),
            inspection.specification_version,
            inspection.default_function
        ))?;
        for function in &inspection.functions {
            print_function(function)?;
        }
        let mut table = Table::with_titles(["weights stored as", "size"]);
        for (dtype, size) in &inspection.weight_bytes {
            table.row([dtype.name().to_owned(), bytes(*size)]);
        }
        table.row(["weight files in all".to_owned(), bytes(inspection.weight_file_bytes)]);
        line(format!("\n{}\n", table.render()))?;
        for (kind, findings) in [("defect", &report.errors), ("note", &report.notes)] {
            findings.iter().try_for_each(|finding| line(format!("{kind}: {finding}")))?;
        }
        if report.errors.is_empty() {
            line("checked: names, types, shapes, weight records and description agree")?;
        }
        print_risks(&inspection.risks)?;
        Ok(line("")?)
    }

    fn json(&self) -> Value {
        let inspection = &self.inspection;
        let findings = |all: &[Finding]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        let sizes: BTreeMap<&str, u64> =
            inspection.weight_bytes.iter().map(|(dtype, size)| (dtype.name(), *size)).collect();
        json!({
            "package": self.path,
            "specification_version": inspection.specification_version,
            "default_function": inspection.default_function,
            "functions": inspection.functions.iter().map(function_json).collect::<Vec<_>>(),
            "weight_bytes": sizes,
            "weight_file_bytes": inspection.weight_file_bytes,
            "defects": findings(&self.report.errors),
            "notes": findings(&self.report.notes),
            "neural_engine_risks": inspection.risks.iter().map(risk_json).collect::<Vec<_>>(),
        })
    }
}

fn print_function(function: &InspectedFunction) -> anyhow::Result<()> {
    line(format!(
        "\nfunction {} ({}): {} operations, {} constants, {} of weights",
        function.name,
        function.opset,
        function.operations(),
        function.constants,
        bytes(function.weight_bytes)
    ))?;
    let features = [("input", &function.inputs), ("state", &function.states), ("output", &function.outputs)];
    let width = features.iter().flat_map(|(_, all)| all.iter()).map(|(name, _)| name.len()).max();
    for (role, all) in features {
        for (name, ty) in all {
            line(format!("  {role:<6}  {name:<width$}  {ty}", width = width.unwrap_or(0)))?;
        }
    }
    let mut operators: Vec<(&String, &usize)> = function.operators.iter().collect();
    operators.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let counts: Vec<String> = operators.iter().map(|(name, count)| format!("{name} {count}")).collect();
    Ok(line(format!("  operators: {}", counts.join(", ")))?)
}

fn print_risks(risks: &[Risk]) -> anyhow::Result<()> {
    if risks.is_empty() {
        return Ok(line("Neural Engine: no limit that is known from reports is touched")?);
    }
    line("Neural Engine, limits known from reports that this package touches (risks, not facts):")?;
    for risk in risks {
        let more = match risk.count {
            count if count > risk.touches.len() => format!(", ... ({count} in all)"),
            _ => String::new(),
        };
        line(format!("  {}: {}", risk.place, risk.limit.risk()))?;
        line(format!("    where: {}{more}", risk.touches.join(", ")))?;
        line(format!("    source: {}", risk.limit.source()))?;
    }
    Ok(())
}

fn function_json(function: &InspectedFunction) -> Value {
    let features = |all: &[(String, String)]| -> Vec<Value> {
        all.iter().map(|(name, ty)| json!({"name": name, "type": ty})).collect()
    };
    json!({
        "name": function.name,
        "opset": function.opset,
        "inputs": features(&function.inputs),
        "outputs": features(&function.outputs),
        "states": features(&function.states),
        "operators": function.operators,
        "operations": function.operations(),
        "constants": function.constants,
        "weight_bytes": function.weight_bytes,
    })
}

fn risk_json(risk: &Risk) -> Value {
    json!({
        "limit": risk.limit.name(),
        "place": risk.place,
        "risk": risk.limit.risk(),
        "source": risk.limit.source(),
        "count": risk.count,
        "touches": risk.touches,
    })
}
