//! The modules of a crate, what they declare and what they refer to, read from its tokens.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, anyhow};
use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// The most imports that are followed to the item that they name.
const MAX_IMPORTS: usize = 16;

/// The words that begin an item whose name comes next.
const ITEM_KEYWORDS: &[&str] = &["fn", "struct", "enum", "union", "trait", "type", "const", "static"];

/// The modules of one crate, tests excluded; the first is the root.
pub(crate) struct Modules(Vec<Module>);

/// A module with a file of its own, or one written inside its parent's.
pub(crate) struct Module {
    /// Names from the root.
    pub(crate) path: Vec<String>,
    pub(crate) file: PathBuf,
    parent: usize,
    children: BTreeMap<String, usize>,
    items: Vec<String>,
    /// Imported paths by the name that they have here.
    imports: BTreeMap<String, Vec<String>>,
    /// Paths that end in `*`.
    globs: Vec<Vec<String>>,
    /// Paths of two or more segments outside `use`.
    paths: Vec<Vec<String>>,
}

/// The result of a look-up.
#[derive(Clone, Copy)]
enum Found {
    Module(usize),
    /// An item, by the module that declares it.
    Item(usize),
}

/// A use of an item: the modules' indices and the path as it is written.
pub(crate) struct Reference {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) path: String,
}

impl Modules {
    /// Reads the crate whose root is `file`.
    ///
    /// # Errors
    /// A file that can't be read or is not Rust, with its path.
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let mut modules = Modules(vec![Module::new(Vec::new(), file.to_path_buf(), 0)]);
        modules.read_file(0)?;
        Ok(modules)
    }

    pub(crate) fn module(&self, index: usize) -> &Module {
        &self.0[index]
    }

    /// Every use of an item of another module, through re-exports to the module that declares it.
    pub(crate) fn references(&self) -> Vec<Reference> {
        let mut references = Vec::new();
        for (from, module) in self.0.iter().enumerate() {
            let mut add =
                |to, path: &[String]| references.push(Reference { from, to, path: path.join("::") });
            for path in module.imports.values().chain(&module.paths) {
                if let Some(Found::Item(to)) = self.resolve(from, path, MAX_IMPORTS) {
                    add(to, path);
                }
            }
            for path in &module.globs {
                if let Some(Found::Module(to)) = self.resolve(from, path, MAX_IMPORTS) {
                    add(to, path);
                }
            }
        }
        references
    }

    fn resolve(&self, from: usize, path: &[String], imports: usize) -> Option<Found> {
        let (first, rest) = path.split_first()?;
        let mut found = match first.as_str() {
            "crate" => Found::Module(0),
            "self" => Found::Module(from),
            "super" => Found::Module(self.0[from].parent),
            name => self.look_up(from, name, imports)?,
        };
        for name in rest {
            let Found::Module(module) = found else { break };
            found = match name.as_str() {
                "super" => Found::Module(self.0[module].parent),
                name => self.look_up(module, name, imports).unwrap_or(Found::Item(module)),
            };
        }
        Some(found)
    }

    /// A name in a module's scope.
    fn look_up(&self, module: usize, name: &str, imports: usize) -> Option<Found> {
        let scope = &self.0[module];
        if let Some(&child) = scope.children.get(name) {
            return Some(Found::Module(child));
        }
        if scope.items.iter().any(|item| item == name) {
            return Some(Found::Item(module));
        }
        let imports = imports.checked_sub(1)?;
        if let Some(path) = scope.imports.get(name) {
            return self.resolve(module, path, imports);
        }
        scope.globs.iter().find_map(|path| match self.resolve(module, path, imports)? {
            Found::Module(other) if other != module => self.look_up(other, name, imports),
            _ => None,
        })
    }

    fn read_file(&mut self, module: usize) -> anyhow::Result<()> {
        let file = self.0[module].file.clone();
        let text = fs::read_to_string(&file).with_context(|| format!("{} can't be read", file.display()))?;
        let tokens = TokenStream::from_str(&text).map_err(|error| anyhow!("{}: {error}", file.display()))?;
        self.read_items(module, tokens)
    }

    fn read_items(&mut self, module: usize, tokens: TokenStream) -> anyhow::Result<()> {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut tokens = tokens.as_slice();
        let mut files = Vec::new();
        while let Some(token) = tokens.first() {
            if let Some((text, rest)) = attribute(tokens) {
                files.extend(file_of_attribute(&text));
                tokens = if is_for_tests(&text) { after_item(rest) } else { rest };
            } else if let Some((name, body, rest)) = submodule(tokens) {
                self.add_module(module, name, body, &std::mem::take(&mut files))?;
                tokens = rest;
            } else if let TokenTree::Group(group) = token {
                self.0[module].read_body(group.stream());
                tokens = &tokens[1..];
            } else {
                self.0[module].declare(tokens);
                tokens = self.0[module].read_path_or_use(tokens);
            }
        }
        Ok(())
    }

    /// Adds a submodule, or one for each of the files that `path` attributes name for different systems: a
    /// look-up finds the first.
    fn add_module(
        &mut self,
        parent: usize,
        name: String,
        body: Option<&Group>,
        files: &[String],
    ) -> anyhow::Result<()> {
        let owner = &self.0[parent];
        let path = [owner.path.as_slice(), std::slice::from_ref(&name)].concat();
        let files = match body {
            Some(_) => vec![owner.file.clone()],
            None if files.is_empty() => vec![owner.file_of_child(&name)?],
            None => files.iter().map(|file| owner.file.with_file_name(file)).collect(),
        };
        for file in files {
            let index = self.0.len();
            self.0[parent].children.entry(name.clone()).or_insert(index);
            self.0.push(Module::new(path.clone(), file, parent));
            match body {
                Some(body) => self.read_items(index, body.stream())?,
                None => self.read_file(index)?,
            }
        }
        Ok(())
    }
}

impl Module {
    fn new(path: Vec<String>, file: PathBuf, parent: usize) -> Self {
        let (children, imports) = (BTreeMap::new(), BTreeMap::new());
        let (items, globs, paths) = (Vec::new(), Vec::new(), Vec::new());
        Module { path, file, parent, children, items, imports, globs, paths }
    }

    fn file_of_child(&self, name: &str) -> anyhow::Result<PathBuf> {
        let stem = self.file.file_stem().unwrap_or_default();
        let is_root = ["mod", "lib", "main"].iter().any(|root| stem == *root);
        // A file that a `path` attribute names has its submodules beside it.
        let folders = match is_root {
            true => vec![self.file.with_file_name("")],
            false => vec![self.file.with_extension(""), self.file.with_file_name("")],
        };
        let places = |folder: PathBuf| [folder.join(format!("{name}.rs")), folder.join(name).join("mod.rs")];
        let found = folders.into_iter().flat_map(places).find(|place| place.is_file());
        found.with_context(|| format!("{}: the module `{name}` has no file", self.file.display()))
    }

    /// Notes the name of the item that begins here.
    fn declare(&mut self, tokens: &[TokenTree]) {
        let [TokenTree::Ident(keyword), rest @ ..] = tokens else { return };
        let name = match rest {
            [TokenTree::Ident(word), TokenTree::Ident(name), ..] if word == "mut" => name,
            [TokenTree::Ident(name), ..] if ITEM_KEYWORDS.iter().any(|word| keyword == word) => name,
            [TokenTree::Punct(_), TokenTree::Ident(name), ..] if keyword == "macro_rules" => name,
            _ => return,
        };
        self.items.push(name.to_string());
    }

    /// Notes the paths and imports inside a function's body, a type or a macro.
    fn read_body(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut tokens = tokens.as_slice();
        while let Some(token) = tokens.first() {
            if let Some((text, rest)) = attribute(tokens) {
                tokens = if is_for_tests(&text) { after_item(rest) } else { rest };
            } else if let TokenTree::Group(group) = token {
                self.read_body(group.stream());
                tokens = &tokens[1..];
            } else {
                tokens = self.read_path_or_use(tokens);
            }
        }
    }

    /// Notes the path or import that begins here, and returns the tokens after it.
    fn read_path_or_use<'t>(&mut self, tokens: &'t [TokenTree]) -> &'t [TokenTree] {
        match tokens {
            [TokenTree::Ident(word), TokenTree::Group(scope), rest @ ..]
                if word == "pub" && scope.delimiter() == Delimiter::Parenthesis =>
            {
                rest
            }
            [TokenTree::Ident(word), rest @ ..] if word == "use" => {
                let end = rest.iter().position(|token| is_punct(token, ';')).unwrap_or(rest.len());
                self.import(&[], &rest[..end]);
                &rest[end..]
            }
            [TokenTree::Ident(_), ..] => {
                let (path, rest) = leading_path(tokens);
                if path.len() > 1 {
                    self.paths.push(path);
                }
                rest
            }
            [_, rest @ ..] => rest,
            [] => tokens,
        }
    }

    /// Notes the imports of a `use` tree below a prefix.
    fn import(&mut self, prefix: &[String], tree: &[TokenTree]) {
        let (path, rest) = leading_path(tree);
        let path = [prefix, &path].concat();
        match rest {
            [] => self.import_as(path, None),
            [TokenTree::Ident(_), TokenTree::Ident(name), ..] => self.import_as(path, Some(name.to_string())),
            [first, second, rest @ ..] if is_punct(first, ':') && is_punct(second, ':') => {
                self.import(&path, rest);
            }
            [TokenTree::Group(group), ..] => {
                let trees: Vec<TokenTree> = group.stream().into_iter().collect();
                trees.split(|token| is_punct(token, ',')).for_each(|tree| {
                    if !tree.is_empty() {
                        self.import(&path, tree);
                    }
                });
            }
            [star, ..] if is_punct(star, '*') => self.globs.push(path),
            _ => {}
        }
    }

    fn import_as(&mut self, mut path: Vec<String>, name: Option<String>) {
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        if let Some(name) = name.or_else(|| path.last().cloned()) {
            self.imports.insert(name, path);
        }
    }
}

fn is_punct(token: &TokenTree, character: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == character)
}

/// The path `a::b::c` that the tokens begin with, and the tokens after it.
fn leading_path(mut tokens: &[TokenTree]) -> (Vec<String>, &[TokenTree]) {
    let mut path = Vec::new();
    while let [TokenTree::Ident(name), rest @ ..] = tokens {
        path.push(name.to_string());
        tokens = rest;
        match rest {
            [a, b, next @ ..]
                if is_punct(a, ':') && is_punct(b, ':') && matches!(next, [TokenTree::Ident(_), ..]) =>
            {
                tokens = next;
            }
            _ => break,
        }
    }
    (path, tokens)
}

/// The attribute that the tokens begin with, as text without spaces, and the tokens after it.
fn attribute(tokens: &[TokenTree]) -> Option<(String, &[TokenTree])> {
    let (hash, rest) = tokens.split_first()?;
    let rest = match rest {
        [inner, rest @ ..] if is_punct(inner, '!') => rest,
        _ => rest,
    };
    match rest {
        [TokenTree::Group(group), rest @ ..]
            if is_punct(hash, '#') && group.delimiter() == Delimiter::Bracket =>
        {
            Some((group.stream().to_string().replace([' ', '\n'], ""), rest))
        }
        _ => None,
    }
}

fn is_for_tests(attribute: &str) -> bool {
    attribute == "test" || attribute == "cfg(test)" || attribute.starts_with("cfg(all(test,")
}

/// The file that `path = ".."` names, alone or in `cfg_attr`.
fn file_of_attribute(attribute: &str) -> Option<String> {
    let is_path = attribute.starts_with("path=") || attribute.starts_with("cfg_attr(");
    let (_, rest) = attribute.split_once("path=\"").filter(|_| is_path)?;
    Some(rest.split('"').next()?.to_string())
}

/// The tokens after the item, or statement, that they begin with.
fn after_item(mut tokens: &[TokenTree]) -> &[TokenTree] {
    let ends_with_brace = !matches!(tokens, [TokenTree::Ident(word), ..] if word == "use" || word == "let");
    while let Some((token, rest)) = tokens.split_first() {
        tokens = rest;
        let is_body = matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
            && ends_with_brace;
        if is_body || is_punct(token, ';') {
            break;
        }
    }
    tokens
}

/// The name of the submodule that is declared here, its body if it has no file, and the tokens after it.
fn submodule(tokens: &[TokenTree]) -> Option<(String, Option<&Group>, &[TokenTree])> {
    match tokens {
        [TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Group(body), rest @ ..]
            if word == "mod" =>
        {
            Some((name.to_string(), Some(body), rest))
        }
        [TokenTree::Ident(word), TokenTree::Ident(name), end, rest @ ..]
            if word == "mod" && is_punct(end, ';') =>
        {
            Some((name.to_string(), None, rest))
        }
        _ => None,
    }
}
