//! Traversal of a program's operations and constants, inner blocks included. Decoding bounds the recursion depth.

use crate::proto;

/// Calls `visit` with every operation of a block and of its inner blocks.
pub(crate) fn visit_operations<'a>(block: &'a proto::Block, visit: &mut impl FnMut(&'a proto::Operation)) {
    for operation in &block.operations {
        visit(operation);
        operation.blocks.iter().for_each(|inner| visit_operations(inner, visit));
    }
}

/// Calls `visit` with every constant of a block and of its inner blocks.
pub(crate) fn visit_values<'a>(block: &'a proto::Block, visit: &mut impl FnMut(&'a proto::Value)) {
    for operation in &block.operations {
        operation.attributes.values().for_each(&mut *visit);
        for binding in operation.inputs.values().flat_map(|argument| &argument.arguments) {
            if let Some(proto::BindingKind::Value(value)) = &binding.kind {
                visit(value);
            }
        }
        operation.blocks.iter().for_each(|inner| visit_values(inner, visit));
    }
}
