//! Functions: finds all functions of a file and measures each.

use proc_macro2::Span;
use quote::ToTokens;
use syn::parse::Parser as _;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};
use syn::{Attribute, BinOp, Block, Expr, Meta, Signature, Token, Type};

use crate::analysis::{Function, narrow};
use crate::fingerprint;

/// All functions with a body, including those within functions and within macro calls that contain
/// plain items.
pub(crate) fn of(file: &syn::File) -> Vec<Function> {
    let mut finder = Finder::default();
    finder.visit_file(file);
    finder.found
}

#[derive(Default)]
struct Finder {
    found: Vec<Function>,
    /// The modules, types and functions around the current place.
    scope: Vec<String>,
    /// Whether the current place is compiled for tests only.
    test: bool,
}

impl Finder {
    /// Visits the contents of an item called `name`.
    fn within(&mut self, name: String, attrs: &[Attribute], visit: impl FnOnce(&mut Self)) {
        let test = self.test;
        self.test |= for_tests(attrs);
        self.scope.push(name);
        visit(self);
        self.scope.pop();
        self.test = test;
    }

    fn function<'ast>(
        &mut self,
        attrs: &[Attribute],
        sig: &'ast Signature,
        block: &'ast Block,
        whole: Span,
    ) {
        self.within(sig.ident.to_string(), attrs, |finder| {
            let mut decisions = Decisions { count: 0, nesting: 0, deepest: 0 };
            decisions.visit_block(block);
            let first_line = sig.span().start().line.max(1);
            finder.found.push(Function {
                name: finder.scope.join("::"),
                first_line: narrow(first_line),
                last_line: narrow(whole.end().line.max(first_line)),
                test: finder.test,
                complexity: 1 + decisions.count,
                nesting: decisions.deepest,
                fingerprint: fingerprint::of(sig, block),
            });
            finder.visit_block(block);
        });
    }
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_item_fn(&mut self, node: &'ast syn::ItemFn) {
        self.function(&node.attrs, &node.sig, &node.block, node.span());
    }

    fn visit_impl_item_fn(&mut self, node: &'ast syn::ImplItemFn) {
        self.function(&node.attrs, &node.sig, &node.block, node.span());
    }

    fn visit_trait_item_fn(&mut self, node: &'ast syn::TraitItemFn) {
        if let Some(block) = &node.default {
            self.function(&node.attrs, &node.sig, block, node.span());
        }
    }

    fn visit_item_mod(&mut self, node: &'ast syn::ItemMod) {
        self.within(node.ident.to_string(), &node.attrs, |finder| {
            visit::visit_item_mod(finder, node)
        });
    }

    fn visit_item_trait(&mut self, node: &'ast syn::ItemTrait) {
        self.within(node.ident.to_string(), &node.attrs, |finder| {
            visit::visit_item_trait(finder, node)
        });
    }

    fn visit_item_impl(&mut self, node: &'ast syn::ItemImpl) {
        let name = short_type(&node.self_ty);
        let name = match &node.trait_ {
            Some((path, _)) => match path.segments.last() {
                Some(segment) => format!("<{name} as {}>", segment.ident),
                None => name,
            },
            None => name,
        };
        self.within(name, &node.attrs, |finder| visit::visit_item_impl(finder, node));
    }

    /// Macros such as `cfg_unix! { … }` wrap plain items. `macro_rules!` itself contains none.
    fn visit_item_macro(&mut self, node: &'ast syn::ItemMacro) {
        if node.ident.is_some() {
            return;
        }
        if let Ok(file) = syn::parse2::<syn::File>(node.mac.tokens.clone()) {
            self.visit_file(&file);
        }
    }
}

/// Counts the decisions of one body, without those of functions within it.
struct Decisions {
    count: u32,
    nesting: u32,
    deepest: u32,
}

impl Decisions {
    fn nested(&mut self, visit: impl FnOnce(&mut Self)) {
        self.nesting += 1;
        self.deepest = self.deepest.max(self.nesting);
        visit(self);
        self.nesting -= 1;
    }
}

impl<'ast> Visit<'ast> for Decisions {
    fn visit_item(&mut self, _: &'ast syn::Item) {}

    fn visit_attribute(&mut self, _: &'ast Attribute) {}

    fn visit_expr_if(&mut self, node: &'ast syn::ExprIf) {
        self.count += 1;
        self.visit_expr(&node.cond);
        self.nested(|this| this.visit_block(&node.then_branch));
        match node.else_branch.as_ref().map(|(_, branch)| &**branch) {
            // A chain of `else if` is as deep as its first `if`.
            Some(Expr::If(next)) => self.visit_expr_if(next),
            Some(branch) => self.nested(|this| this.visit_expr(branch)),
            None => {}
        }
    }

    fn visit_expr_match(&mut self, node: &'ast syn::ExprMatch) {
        self.count += narrow(node.arms.len().saturating_sub(1));
        self.visit_expr(&node.expr);
        self.nested(|this| node.arms.iter().for_each(|arm| this.visit_arm(arm)));
    }

    fn visit_pat_guard(&mut self, node: &'ast syn::PatGuard) {
        self.count += 1;
        visit::visit_pat_guard(self, node);
    }

    fn visit_expr_while(&mut self, node: &'ast syn::ExprWhile) {
        self.count += 1;
        self.visit_expr(&node.cond);
        self.nested(|this| this.visit_block(&node.body));
    }

    fn visit_expr_for_loop(&mut self, node: &'ast syn::ExprForLoop) {
        self.count += 1;
        self.visit_expr(&node.expr);
        self.nested(|this| this.visit_block(&node.body));
    }

    /// A `loop` has no condition, so it is no decision.
    fn visit_expr_loop(&mut self, node: &'ast syn::ExprLoop) {
        self.nested(|this| this.visit_block(&node.body));
    }

    fn visit_expr_closure(&mut self, node: &'ast syn::ExprClosure) {
        self.nested(|this| visit::visit_expr_closure(this, node));
    }

    fn visit_expr_binary(&mut self, node: &'ast syn::ExprBinary) {
        if matches!(node.op, BinOp::And(_) | BinOp::Or(_)) {
            self.count += 1;
        }
        visit::visit_expr_binary(self, node);
    }

    fn visit_expr_try(&mut self, node: &'ast syn::ExprTry) {
        self.count += 1;
        visit::visit_expr_try(self, node);
    }

    fn visit_local(&mut self, node: &'ast syn::Local) {
        if node.init.as_ref().is_some_and(|init| init.diverge.is_some()) {
            self.count += 1;
        }
        visit::visit_local(self, node);
    }

    /// The arguments of `assert!`, `format!`, `vec!` and many more are expressions.
    fn visit_macro(&mut self, node: &'ast syn::Macro) {
        let arguments = Punctuated::<Expr, Token![,]>::parse_terminated;
        if let Ok(arguments) = arguments.parse2(node.tokens.clone()) {
            arguments.iter().for_each(|argument| self.visit_expr(argument));
        }
    }
}

/// Whether these attributes mark a test (`#[test]`, `#[tokio::test]`), or code compiled for tests
/// only.
fn for_tests(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|attr| {
        let path = attr.path();
        path.segments.last().is_some_and(|last| last.ident == "test" || last.ident == "bench")
            || path.is_ident("cfg")
                && attr.parse_args().is_ok_and(|condition| requires_test(&condition))
    })
}

/// Whether a condition of `cfg` is `test`, or an `all(…)` that contains it.
fn requires_test(condition: &Meta) -> bool {
    match condition {
        Meta::List(list) if list.path.is_ident("all") => list
            .parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)
            .is_ok_and(|all| all.iter().any(requires_test)),
        other => other.path().is_ident("test"),
    }
}

/// The short name of a type: without its path and parameters.
fn short_type(ty: &Type) -> String {
    match ty {
        Type::Path(path) => {
            path.path.segments.last().map_or_else(String::new, |last| last.ident.to_string())
        }
        Type::Reference(reference) => format!("&{}", short_type(&reference.elem)),
        other => other.to_token_stream().to_string().replace(' ', ""),
    }
}
