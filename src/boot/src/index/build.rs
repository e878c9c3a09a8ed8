//! Makes an index: picks modules with all that they need, and orders what is loaded before and after each.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use super::{Index, Module, ModuleInfo, Node, Step, matches, normalise};

/// Why no index could be made.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BuildError {
    /// A wanted module is neither a file nor part of the kernel.
    #[error("the kernel has no module {name}")]
    Missing {
        /// The module's name as it was asked for.
        name: String,
    },
    /// A module uses the symbols of one that is not there.
    #[error("module {name} depends on {dependency}, which is not there")]
    MissingDependency {
        /// The module.
        name: String,
        /// The dependency.
        dependency: String,
    },
    /// Modules need each other in a circle.
    #[error("module {name} depends on itself through others")]
    Circle {
        /// A module in the circle.
        name: String,
    },
}

/// All modules of one kernel, from which an image ships some.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    modules: BTreeMap<String, (String, ModuleInfo)>,
    builtin: BTreeSet<String>,
    builtin_aliases: BTreeSet<String>,
}

impl Catalogue {
    /// Adds a module file; `path` is relative to the directory of the kernel version.
    pub fn add(&mut self, path: &str, info: ModuleInfo) {
        self.modules
            .insert(info.name.clone(), (path.to_owned(), info));
    }

    /// Adds what is part of the kernel: the text of `modules.builtin`, a path a line.
    pub fn add_builtin(&mut self, text: &str) {
        let names = text
            .lines()
            .filter_map(|line| line.rsplit('/').next()?.strip_suffix(".ko"));
        self.builtin.extend(names.map(normalise));
    }

    /// Adds the aliases of what is part of the kernel: `modules.builtin.modinfo`, entries `NAME.KEY=VALUE` ended by NUL.
    pub fn add_builtin_modinfo(&mut self, bytes: &[u8]) {
        for entry in bytes.split(|b| *b == 0) {
            if let Some((key, value)) = std::str::from_utf8(entry)
                .ok()
                .and_then(|e| e.split_once('='))
                && key.ends_with(".alias")
            {
                self.builtin_aliases.insert(normalise(value));
            }
        }
    }

    /// The names of `wanted` and of all that they need, sorted. Names that the kernel contains are left out.
    ///
    /// # Errors
    /// A wanted module or a dependency that does not exist.
    pub fn closure<'a>(
        &self,
        wanted: impl IntoIterator<Item = &'a str>,
    ) -> Result<BTreeSet<String>, BuildError> {
        let mut chosen = BTreeSet::new();
        let mut open = Vec::new();
        for name in wanted {
            let normal = normalise(name);
            if self.modules.contains_key(&normal) {
                open.push(normal);
            } else if !self.builtin.contains(&normal) {
                return Err(BuildError::Missing {
                    name: name.to_owned(),
                });
            }
        }
        while let Some(name) = open.pop() {
            if !chosen.insert(name.clone()) {
                continue;
            }
            let Some((_, info)) = self.modules.get(&name) else {
                continue;
            };
            for dependency in &info.depends {
                open.push(self.dependency(&name, dependency)?.to_owned());
            }
            for soft in info.soft_before.iter().chain(&info.soft_after) {
                open.extend(self.soft_targets(soft).map(ToOwned::to_owned));
            }
        }
        Ok(chosen)
    }

    /// Makes the index of the modules `chosen`, a set that [`Catalogue::closure`] gave.
    ///
    /// `with_builtin` lists the kernel's own modules too, so that asking for one is no error; the early index leaves
    /// them out to stay small. Aliases by CPU feature are left out: they would pull in crypto drivers at each start.
    ///
    /// # Errors
    /// A dependency that is missing, or a circle.
    pub fn index(
        &self,
        chosen: &BTreeSet<String>,
        with_builtin: bool,
    ) -> Result<Index, BuildError> {
        let numbers: BTreeMap<&str, usize> = chosen
            .iter()
            .enumerate()
            .map(|(n, name)| (name.as_str(), n))
            .collect();
        let mut index = Index::default();
        for name in chosen {
            let Some((path, info)) = self.modules.get(name) else {
                return Err(BuildError::Missing { name: name.clone() });
            };
            let mut order = Order {
                catalogue: self,
                numbers: &numbers,
                steps: Vec::new(),
                path: Vec::new(),
            };
            order.dependencies_of(name, info, false)?;
            let before = std::mem::take(&mut order.steps);
            for soft in &info.soft_after {
                for target in self.soft_targets(soft) {
                    order.add(target, true)?;
                }
            }
            let number = numbers.get(name.as_str()).copied();
            order.steps.retain(|step| {
                Some(step.module) != number && before.iter().all(|b| b.module != step.module)
            });
            index.modules.push(Module {
                name: name.clone(),
                path: path.clone(),
                before,
                after: order.steps,
            });
            for alias in &info.aliases {
                let alias = normalise(alias);
                if let Some(number) = number
                    && !alias.starts_with("cpu:")
                {
                    index.aliases.push((alias, number));
                }
            }
            index.nodes.extend(node(info));
        }
        index.aliases.sort();
        index.aliases.dedup();
        if with_builtin {
            index.builtin = self.builtin.iter().cloned().collect();
        }
        Ok(index)
    }

    /// A dependency's name when it is a module; one that the kernel contains needs no step.
    fn dependency<'a>(&'a self, name: &str, dependency: &'a str) -> Result<&'a str, BuildError> {
        if self.modules.contains_key(dependency) {
            Ok(dependency)
        } else {
            Err(BuildError::MissingDependency {
                name: name.to_owned(),
                dependency: dependency.to_owned(),
            })
        }
    }

    /// The modules that a soft dependency, a name or an alias, means; none when the kernel itself has it.
    fn soft_targets<'a>(&'a self, word: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let word = normalise(word);
        let by_name = self
            .modules
            .get_key_value(&word)
            .map(|(name, _)| name.as_str());
        let builtin = self.builtin.contains(&word) || self.builtin_aliases.contains(&word);
        let search = by_name.is_none() && !builtin;
        let by_alias = self
            .modules
            .iter()
            .filter(move |(_, (_, info))| {
                search && info.aliases.iter().any(|a| matches(&normalise(a), &word))
            })
            .map(|(name, _)| name.as_str());
        by_name.into_iter().chain(by_alias)
    }
}

/// A depth-first walk that appends each module after all that it needs.
struct Order<'a> {
    catalogue: &'a Catalogue,
    numbers: &'a BTreeMap<&'a str, usize>,
    steps: Vec<Step>,
    /// The modules being walked, to see a circle.
    path: Vec<String>,
}

impl Order<'_> {
    fn dependencies_of(
        &mut self,
        name: &str,
        info: &ModuleInfo,
        soft: bool,
    ) -> Result<(), BuildError> {
        if self.path.iter().any(|p| p == name) {
            return Err(BuildError::Circle {
                name: name.to_owned(),
            });
        }
        self.path.push(name.to_owned());
        for wanted in &info.soft_before {
            for target in self.catalogue.soft_targets(wanted) {
                self.add(target, true)?;
            }
        }
        for dependency in &info.depends {
            self.add(self.catalogue.dependency(name, dependency)?, soft)?;
        }
        self.path.pop();
        Ok(())
    }

    fn add(&mut self, name: &str, soft: bool) -> Result<(), BuildError> {
        let Some((_, info)) = self.catalogue.modules.get(name) else {
            return Ok(());
        };
        let Some(number) = self.numbers.get(name).copied() else {
            return Ok(());
        };
        // A soft dependency that leads back is dropped; the kernel could not honour it either.
        if soft && self.path.iter().any(|p| p == name) {
            return Ok(());
        }
        if let Some(step) = self.steps.iter_mut().find(|s| s.module == number) {
            step.soft &= soft;
            if step.soft == soft {
                return Ok(());
            }
        }
        self.dependencies_of(name, info, soft)?;
        match self.steps.iter_mut().find(|s| s.module == number) {
            Some(step) => step.soft &= soft,
            None => self.steps.push(Step {
                module: number,
                soft,
            }),
        }
        Ok(())
    }
}

/// The node of a module with a `devname:` alias: its numbers are in its `char-major-` or `block-major-` alias.
fn node(info: &ModuleInfo) -> Option<Node> {
    let path = info.node.clone()?;
    info.aliases.iter().find_map(|alias| {
        let (block, numbers) = match alias.strip_prefix("char-major-") {
            Some(numbers) => (false, numbers),
            None => (true, alias.strip_prefix("block-major-")?),
        };
        let (major, minor) = numbers.split_once('-')?;
        Some(Node {
            path: path.clone(),
            block,
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn info(name: &str, depends: &[&str]) -> ModuleInfo {
        ModuleInfo {
            name: name.to_owned(),
            depends: depends.iter().map(|d| (*d).to_owned()).collect(),
            ..ModuleInfo::default()
        }
    }

    fn catalogue(modules: impl IntoIterator<Item = ModuleInfo>) -> Catalogue {
        let mut catalogue = Catalogue::default();
        for module in modules {
            catalogue.add(&format!("kernel/{}.ko", module.name), module);
        }
        catalogue
    }

    /// The names of a module's steps before it, soft ones with a tilde.
    fn before(index: &Index, name: &str) -> Vec<String> {
        let module = &index.modules()[index.by_name(name).unwrap()];
        let steps = module.before.iter();
        steps
            .map(|s| {
                format!(
                    "{}{}",
                    if s.soft { "~" } else { "" },
                    index.modules()[s.module].name
                )
            })
            .collect()
    }

    #[test]
    fn a_module_comes_with_what_it_needs_in_the_order_of_need() {
        let catalogue = catalogue([
            info("virtio_blk", &["virtio", "virtio_ring"]),
            info("virtio", &["virtio_ring"]),
            info("virtio_ring", &[]),
            info("unrelated", &[]),
        ]);
        let chosen = catalogue.closure(["virtio-blk"]).unwrap();
        let index = catalogue.index(&chosen, false).unwrap();
        assert_eq!(index.modules().len(), 3);
        assert_eq!(before(&index, "virtio_blk"), ["virtio_ring", "virtio"]);
    }

    #[test]
    fn a_soft_dependency_is_followed_by_alias_unless_the_kernel_has_it() {
        let mut libcrc32c = info("libcrc32c", &[]);
        libcrc32c.soft_before = vec!["crc32c".to_owned()];
        let mut driver = info("crc32c_intel", &[]);
        driver.aliases = vec!["crc32c".to_owned()];
        let mut catalogue = catalogue([libcrc32c, driver, info("erofs", &["libcrc32c"])]);
        let chosen = catalogue.closure(["erofs"]).unwrap();
        assert_eq!(
            before(&catalogue.index(&chosen, false).unwrap(), "erofs"),
            ["~crc32c_intel", "libcrc32c"]
        );

        catalogue.add_builtin_modinfo(b"crc32c_generic.alias=crc32c\0");
        let chosen = catalogue.closure(["erofs"]).unwrap();
        assert_eq!(
            before(&catalogue.index(&chosen, false).unwrap(), "erofs"),
            ["libcrc32c"]
        );
    }

    #[test]
    fn what_does_not_exist_is_named() {
        let mut catalogue = catalogue([info("a", &["b"])]);
        assert_eq!(
            catalogue.closure(["c"]).unwrap_err().to_string(),
            "the kernel has no module c"
        );
        assert_eq!(
            catalogue.closure(["a"]).unwrap_err().to_string(),
            "module a depends on b, which is not there"
        );
        catalogue.add_builtin("kernel/fs/ext4/ext4.ko\n");
        assert_eq!(catalogue.closure(["ext4"]), Ok(BTreeSet::new()));
    }

    #[test]
    fn a_circle_is_an_error_and_a_soft_circle_is_cut() {
        let hard = catalogue([info("a", &["b"]), info("b", &["a"])]);
        let chosen = hard.closure(["a"]).unwrap();
        assert!(matches!(
            hard.index(&chosen, false),
            Err(BuildError::Circle { .. })
        ));

        let mut soft = info("a", &[]);
        soft.soft_before = vec!["b".to_owned()];
        let soft = catalogue([soft, info("b", &["a"])]);
        let index = soft.index(&soft.closure(["a"]).unwrap(), false).unwrap();
        assert_eq!(before(&index, "b"), ["a"]);
    }

    #[test]
    fn the_kernels_requests_find_their_modules() {
        let mut tun = info("tun", &[]);
        tun.aliases = vec!["char-major-10-200".to_owned()];
        tun.node = Some("net/tun".to_owned());
        let mut ipv6 = info("ipv6", &[]);
        ipv6.aliases = vec!["net-pf-10".to_owned(), "cpu:type:x86*".to_owned()];
        let catalogue = catalogue([tun, ipv6]);
        let index = catalogue
            .index(&catalogue.closure(["tun", "ipv6"]).unwrap(), false)
            .unwrap();
        assert_eq!(index.resolve("char-major-10-200"), [1]);
        assert_eq!(index.resolve("net-pf-10"), [0]);
        assert_eq!(index.resolve("net_pf_10"), [0]);
        assert!(index.resolve("cpu:type:x86,ven0000").is_empty());
        let node = Node {
            path: "net/tun".to_owned(),
            block: false,
            major: 10,
            minor: 200,
        };
        assert_eq!(index.nodes(), [node]);
    }

    proptest! {
        /// Modules depend on modules of lower numbers only, so there is no circle.
        #[test]
        fn whatever_a_module_needs_is_loaded_before_it(
            edges in prop::collection::vec((0_usize..12, 0_usize..12, any::<bool>()), 0..40)
        ) {
            let mut infos: Vec<ModuleInfo> = (0..12).map(|n| info(&format!("m{n}"), &[])).collect();
            for (a, b, soft) in edges {
                if a == b {
                    continue;
                }
                let to = format!("m{}", a.min(b));
                let from = &mut infos[a.max(b)];
                if soft { &mut from.soft_before } else { &mut from.depends }.push(to);
            }
            let catalogue = catalogue(infos.clone());
            let chosen = catalogue.closure(["m11"]).unwrap();
            let index = catalogue.index(&chosen, false).unwrap();
            for module in index.modules() {
                let mut loaded: Vec<&str> = Vec::new();
                for step in module.before.iter().map(|s| s.module).chain(index.by_name(&module.name)) {
                    let step = &index.modules()[step];
                    let info = infos.iter().find(|i| i.name == step.name).unwrap();
                    for need in info.depends.iter().chain(&info.soft_before) {
                        prop_assert!(loaded.contains(&need.as_str()), "{} before {}", need, step.name);
                    }
                    prop_assert!(!loaded.contains(&step.name.as_str()), "{} twice", step.name);
                    loaded.push(&step.name);
                }
            }
        }
    }
}
