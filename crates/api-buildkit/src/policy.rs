//! Source policies: which sources a build may take, and what it takes in their place.
//!
//! The rules are BuildKit's. Of the rules that match a source the last that allows or denies it counts; one that
//! converts it begins all over with what it has become.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy as pbs;
use bollard_buildkit_proto::pb;
use llb::Graph;
use oci::{Digest, Platform, Reference};
use prost::Message;
use regex::{Regex, RegexBuilder};

use crate::error::Failure;
use crate::verifier::Verifier;
use crate::wire;

/// What the identifiers of images begin with.
pub(crate) const IMAGE: &str = "docker-image://";
/// How often one source may become another.
const MOST_CHANGES: usize = 20;
/// Bytes a compiled expression may take.
const MOST_EXPRESSION: usize = 1 << 20;
/// Rules and constraints of all policies that are sent at once.
const MOST_RULES: usize = 1024;

/// The policies of a build, in their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policies {
    rules: Vec<Arc<Vec<Rule>>>,
    /// Is asked about what the rules allow.
    verifier: Option<Arc<Verifier>>,
}

#[derive(Debug)]
struct Rule {
    action: Action,
    identifier: String,
    /// What identifiers other than the same match; none does if there is nothing.
    pattern: Option<Regex>,
    constraints: Vec<Constraint>,
}

#[derive(Debug)]
enum Action {
    Allow,
    Deny,
    Convert {
        /// May name the groups of the pattern.
        identifier: String,
        attrs: BTreeMap<String, String>,
    },
}

#[derive(Debug)]
struct Constraint {
    key: String,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

/// A source as the policy sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) identifier: String,
    pub(crate) attrs: BTreeMap<String, String>,
}

impl Source {
    /// Makes one of an operation's parts; the name of an image is written in full, as it is when it is looked for.
    pub(crate) fn new(identifier: &str, attrs: impl IntoIterator<Item = (String, String)>) -> Self {
        let image = identifier.strip_prefix(IMAGE);
        let image = image.and_then(|name| Reference::parse_normalized(name).ok());
        Self {
            identifier: match image {
                Some(image) => format!("{IMAGE}{}", image.or_latest()),
                None => identifier.to_owned(),
            },
            attrs: attrs.into_iter().collect(),
        }
    }
}

impl Policies {
    /// Reads a client's policies; what cannot be understood is an error, not a rule less.
    pub(crate) fn parse<'a>(
        policies: impl IntoIterator<Item = &'a pbs::Policy>,
    ) -> Result<Self, Failure> {
        let mut left = MOST_RULES;
        let rules = |policy: &pbs::Policy| {
            let parts = policy.rules.iter().map(|rule| {
                let selector = rule.selector.as_ref();
                1 + selector.map_or(0, |selector| selector.constraints.len())
            });
            left = left.checked_sub(parts.sum()).ok_or_else(|| {
                Failure::unknown(format!(
                    "invalid source policy: more than {MOST_RULES} rules"
                ))
            })?;
            let rules: Result<Vec<Rule>, Failure> = policy.rules.iter().map(rule).collect();
            rules.map(Arc::new)
        };
        let policies: Result<_, Failure> = policies.into_iter().map(rules).collect();
        Ok(Self {
            rules: policies?,
            verifier: None,
        })
    }

    /// Returns these and more: each is asked about what another one has made of a source.
    pub(crate) fn and(&self, more: &Policies) -> Policies {
        Self {
            rules: self.rules.iter().chain(&more.rules).cloned().collect(),
            verifier: self.verifier.clone().or_else(|| more.verifier.clone()),
        }
    }

    /// Has a client decide about what the rules allow.
    #[must_use]
    pub(crate) fn with_verifier(self, verifier: Option<Arc<Verifier>>) -> Self {
        Self { verifier, ..self }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rules.iter().all(|policy| policy.is_empty()) && self.verifier.is_none()
    }

    /// Returns what is taken in the place of a source, `None` for itself. Blocks where a client decides.
    pub(crate) fn evaluate(
        &self,
        source: &Source,
        platform: Option<&pb::Platform>,
    ) -> Result<Option<Source>, Failure> {
        let mut current = source.clone();
        for _ in 0..=MOST_CHANGES {
            let changed = match (self.evaluate_once(&current)?, &self.verifier) {
                (None, Some(verifier)) => verifier.decide(&current, platform)?,
                (changed, _) => changed,
            };
            match changed {
                Some(changed) => current = changed,
                None => return Ok((current != *source).then_some(current)),
            }
        }
        Err(Failure::unknown(format!(
            "too many mutations on a single source: too many operations: {}",
            source.identifier
        )))
    }

    fn evaluate_once(&self, source: &Source) -> Result<Option<Source>, Failure> {
        for policy in &self.rules {
            let mut denied = false;
            for rule in policy.iter().filter(|rule| rule.matches(source)) {
                match &rule.action {
                    Action::Allow => denied = false,
                    Action::Deny => denied = true,
                    Action::Convert { identifier, attrs } => {
                        let changed = rule.convert(source, identifier, attrs);
                        if changed != *source {
                            return Ok(Some(changed));
                        }
                    }
                }
            }
            if denied {
                return Err(Failure::unknown(format!(
                    "source {:?} denied by policy: source denied by policy",
                    source.identifier
                )));
            }
        }
        Ok(None)
    }

    /// Returns what is taken in the place of an image, which need not be one.
    pub(crate) fn in_place_of_image(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Option<String>, Failure> {
        let source = Source {
            identifier: format!("{IMAGE}{reference}"),
            attrs: BTreeMap::new(),
        };
        let changed = self
            .evaluate(&source, Some(&wire::platform(platform)))
            .map_err(|failure| failure.context("could not resolve image due to policy"))?;
        Ok(changed.map(|source| source.identifier))
    }

    /// Returns the name of the image that is taken in the place of another, where nothing else can be.
    pub(crate) fn image_name(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Option<String>, Failure> {
        let Some(identifier) = self.in_place_of_image(reference, platform)? else {
            return Ok(None);
        };
        match identifier.strip_prefix(IMAGE) {
            Some(name) => Ok(Some(name.to_owned())),
            None => Err(Failure::unknown(format!(
                "ref mutated by policy to non-image: {IMAGE}{reference} -> {identifier}"
            ))),
        }
    }

    /// Returns a definition with its sources as the policy has them, `None` for itself.
    pub(crate) fn apply(
        &self,
        definition: &pb::Definition,
    ) -> Result<Option<pb::Definition>, Failure> {
        let invalid = |what: &str| Failure::unknown(format!("failed to load LLB: {what}"));
        let mut changed = false;
        let mut read = Vec::with_capacity(definition.def.len());
        for bytes in &definition.def {
            let mut op = pb::Op::decode(bytes.as_slice())
                .map_err(|_| invalid("an operation cannot be read"))?;
            let mut own = false;
            let platform = op.platform.clone();
            if let Some(pb::op::Op::Source(source)) = &mut op.op {
                let now = Source::new(&source.identifier, source.attrs.clone());
                let then = self.evaluate(&now, platform.as_ref());
                let then =
                    then.map_err(|failure| failure.context("error evaluating the source policy"))?;
                if let Some(then) = then {
                    source.identifier = then.identifier;
                    source.attrs = then.attrs.into_iter().collect();
                    own = true;
                }
            }
            changed |= own;
            read.push((Digest::sha256_of(bytes).to_string(), op, own));
        }
        if !changed {
            return Ok(None);
        }
        // Each operation is named by what it holds, which are the names of its inputs too. A walk from the last one, which
        // is the root, leaves inputs before their users.
        let places: HashMap<&str, usize> = read
            .iter()
            .enumerate()
            .map(|(place, (name, ..))| (name.as_str(), place))
            .collect();
        let mut names: HashMap<&str, String> = HashMap::new();
        let mut begun = vec![false; read.len()];
        let mut made = Vec::with_capacity(read.len());
        let mut stack = vec![(read.len() - 1, 0)];
        while let Some((place, next)) = stack.pop() {
            begun[place] = true;
            let (old, op, own) = &read[place];
            if let Some(input) = op.inputs.get(next) {
                stack.push((place, next + 1));
                if !names.contains_key(input.digest.as_str()) {
                    match places.get(input.digest.as_str()) {
                        Some(place) if !begun[*place] => stack.push((*place, 0)),
                        _ => return Err(invalid("an input is missing")),
                    }
                }
                continue;
            }
            let mut op = op.clone();
            let mut touched = *own;
            for input in &mut op.inputs {
                let name = &names[input.digest.as_str()];
                touched |= *name != input.digest;
                input.digest.clone_from(name);
            }
            let bytes = match touched {
                true => op.encode_to_vec(),
                false => definition.def[place].clone(),
            };
            names.insert(old, Digest::sha256_of(&bytes).to_string());
            made.push(bytes);
        }
        let renamed = |name: &String| names.get(name.as_str()).unwrap_or(name).clone();
        let mut converted = definition.clone();
        converted.def = made;
        converted.metadata = definition
            .metadata
            .iter()
            .map(|(name, metadata)| (renamed(name), metadata.clone()))
            .collect();
        if let Some(source) = &mut converted.source {
            let locations = std::mem::take(&mut source.locations);
            source.locations = locations
                .into_iter()
                .map(|(name, ranges)| (renamed(&name), ranges))
                .collect();
        }
        Ok(Some(converted))
    }

    /// Returns a graph with its sources as the policy has them, `None` for itself.
    pub(crate) fn apply_to_graph(
        &self,
        definition: &pb::Definition,
    ) -> Result<Option<Graph>, Failure> {
        if self.is_empty() {
            return Ok(None);
        }
        let Some(converted) = self.apply(definition)? else {
            return Ok(None);
        };
        let graph = Graph::decode_definition(&converted.encode_to_vec())
            .map_err(|error| Failure::unknown(format!("failed to load LLB: {error}")))?;
        Ok(Some(graph))
    }
}

impl Rule {
    fn matches(&self, source: &Source) -> bool {
        let met = |constraint: &Constraint| {
            let value = source.attrs.get(&constraint.key);
            let value = value.map_or("", String::as_str);
            match &constraint.test {
                Test::Equal(wanted) => value == wanted,
                Test::NotEqual(unwanted) => value != unwanted,
                Test::Matches(pattern) => pattern.is_match(value),
            }
        };
        let named = self.identifier == source.identifier;
        let pattern = self.pattern.as_ref();
        self.constraints.iter().all(met)
            && (named || pattern.is_some_and(|pattern| pattern.is_match(&source.identifier)))
    }

    fn convert(
        &self,
        source: &Source,
        identifier: &str,
        attrs: &BTreeMap<String, String>,
    ) -> Source {
        let mut changed = source.clone();
        match &self.pattern {
            // Only the attributes change.
            _ if identifier.is_empty() => {}
            None => identifier.clone_into(&mut changed.identifier),
            Some(pattern) => {
                let made = pattern.replace_all(&source.identifier, identifier);
                changed.identifier = made.into_owned();
            }
        }
        changed.attrs.extend(attrs.clone());
        changed
    }
}

fn rule(rule: &pbs::Rule) -> Result<Rule, Failure> {
    let invalid = |what: String| Failure::unknown(format!("invalid source policy: {what}"));
    let selector = rule.selector.as_ref();
    let selector = selector.ok_or_else(|| invalid("a rule has no selector".to_owned()))?;
    let identifier = selector.identifier.clone();
    let pattern = match pbs::MatchType::try_from(selector.match_type) {
        Ok(pbs::MatchType::Exact) => None,
        Ok(pbs::MatchType::Regex) => Some(expression(&identifier)?),
        Ok(pbs::MatchType::Wildcard) if identifier.contains("**") => {
            return Err(invalid(format!("invalid wildcard {identifier:?}: \"**\"")));
        }
        Ok(pbs::MatchType::Wildcard) => {
            let quoted = regex::escape(&identifier).replace(r"\*", "((?s:.*))");
            Some(expression(&format!("^{quoted}$"))?)
        }
        Err(_) => {
            let number = selector.match_type;
            return Err(invalid(format!("unknown match type: {number}")));
        }
    };
    let constraints = selector.constraints.iter().map(|constraint| {
        let (key, value) = (constraint.key.clone(), constraint.value.clone());
        let test = match pbs::AttrMatch::try_from(constraint.condition) {
            Ok(pbs::AttrMatch::Equal) => Test::Equal(value),
            Ok(pbs::AttrMatch::Notequal) => Test::NotEqual(value),
            Ok(pbs::AttrMatch::Matches) => Test::Matches(expression(&value)?),
            Err(_) => {
                let number = constraint.condition;
                return Err(invalid(format!("unknown attr condition: {number}")));
            }
        };
        Ok(Constraint { key, test })
    });
    Ok(Rule {
        constraints: constraints.collect::<Result<_, Failure>>()?,
        pattern,
        action: match (pbs::PolicyAction::try_from(rule.action), &rule.updates) {
            (Ok(pbs::PolicyAction::Allow), _) => Action::Allow,
            (Ok(pbs::PolicyAction::Deny), _) => Action::Deny,
            (Ok(pbs::PolicyAction::Convert), Some(updates)) => Action::Convert {
                identifier: updates.identifier.clone(),
                attrs: updates.attrs.clone().into_iter().collect(),
            },
            (Ok(pbs::PolicyAction::Convert), None) => {
                return Err(invalid("missing destination for convert rule".to_owned()));
            }
            (Err(_), _) => return Err(invalid(format!("unknown action: {}", rule.action))),
        },
        identifier,
    })
}

fn expression(text: &str) -> Result<Regex, Failure> {
    let mut builder = RegexBuilder::new(text);
    let built = builder.size_limit(MOST_EXPRESSION).build();
    built.map_err(|error| Failure::unknown(format!("invalid source policy: {text:?}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pbs::{AttrMatch, MatchType, PolicyAction};

    fn selector(kind: MatchType, identifier: &str) -> pbs::Selector {
        pbs::Selector {
            identifier: identifier.to_owned(),
            match_type: kind as i32,
            constraints: Vec::new(),
        }
    }

    fn made(action: PolicyAction, selector: pbs::Selector, to: Option<&str>) -> pbs::Rule {
        pbs::Rule {
            action: action as i32,
            selector: Some(selector),
            updates: to.map(|to| pbs::Update {
                identifier: to.to_owned(),
                attrs: HashMap::new(),
            }),
        }
    }

    fn policies(rules: Vec<pbs::Rule>) -> Policies {
        Policies::parse([&pbs::Policy { version: 1, rules }]).unwrap()
    }

    fn source(identifier: &str) -> Source {
        Source {
            identifier: identifier.to_owned(),
            attrs: BTreeMap::new(),
        }
    }

    /// What becomes of a source: its new identifier, nothing, or an error.
    fn check(rules: Vec<pbs::Rule>, identifier: &str) -> Result<Option<String>, String> {
        let changed = policies(rules).evaluate(&source(identifier), None);
        let changed = changed.map_err(|failure| failure.message)?;
        Ok(changed.map(|source| source.identifier))
    }

    use MatchType::{Exact, Regex as Expression, Wildcard};
    use PolicyAction::{Allow, Convert, Deny};

    #[test]
    fn the_last_rule_that_matches_counts() {
        let all = || selector(Wildcard, "docker-image://*");
        let one = || selector(Exact, "docker-image://a");
        let (allow, deny) = (made(Allow, one(), None), made(Deny, all(), None));
        assert_eq!(
            check(vec![deny.clone(), allow.clone()], "docker-image://a"),
            Ok(None)
        );
        let denied = check(vec![allow.clone(), deny.clone()], "docker-image://a");
        assert!(denied.unwrap_err().contains("denied by policy"));
        assert!(check(vec![deny.clone(), allow], "docker-image://b").is_err());
        assert_eq!(check(vec![deny], "https://docker-image"), Ok(None));
    }

    #[test]
    fn groups_of_wildcards_and_expressions_go_into_what_a_source_becomes() {
        let wild = made(
            Convert,
            selector(Wildcard, "docker-image://golang:*"),
            Some("docker-image://golang:${1}-alpine"),
        );
        let wild = |name| check(vec![wild.clone()], name);
        // What it became matches again.
        assert!(
            wild("docker-image://golang:1")
                .unwrap_err()
                .contains("too many")
        );
        assert_eq!(wild("docker-image://rust:1"), Ok(None));
        let rule = made(
            Convert,
            selector(Expression, r"^https://(.*)\.example/(.*)$"),
            Some("https://mirror.test/$1/${2}"),
        );
        assert_eq!(
            check(vec![rule], "https://a.example/b"),
            Ok(Some("https://mirror.test/a/b".to_owned()))
        );
        let exact = made(Convert, selector(Exact, "a*"), Some("$1"));
        assert_eq!(check(vec![exact.clone()], "ab"), Ok(None));
        assert_eq!(check(vec![exact], "a*"), Ok(Some("$1".to_owned())));
    }

    #[test]
    fn what_a_source_became_is_looked_at_again() {
        let convert = made(Convert, selector(Exact, "a"), Some("b"));
        let deny = made(Deny, selector(Exact, "b"), None);
        assert!(check(vec![convert, deny], "a").is_err());
    }

    #[test]
    fn constraints_are_met_all_or_the_rule_does_not_match() {
        let constrained = |condition: AttrMatch, value: &str| {
            let mut selector = selector(Wildcard, "*");
            selector.constraints.push(pbs::AttrConstraint {
                key: "k".to_owned(),
                value: value.to_owned(),
                condition: condition as i32,
            });
            let mut one = source("x");
            one.attrs.insert("k".to_owned(), "value".to_owned());
            policies(vec![made(Deny, selector, None)])
                .evaluate(&one, None)
                .is_err()
        };
        assert!(constrained(AttrMatch::Equal, "value"));
        assert!(!constrained(AttrMatch::Equal, "other"));
        assert!(constrained(AttrMatch::Notequal, "other"));
        assert!(!constrained(AttrMatch::Notequal, "value"));
        assert!(constrained(AttrMatch::Matches, "^v.l"));
        assert!(!constrained(AttrMatch::Matches, "^a"));
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        let mut unknown = made(Deny, selector(Exact, "a"), None);
        unknown.action = 9;
        let mut kind = selector(Exact, "a");
        kind.match_type = 9;
        for rule in [
            unknown,
            made(Deny, kind, None),
            made(Convert, selector(Exact, "a"), None),
            made(Deny, selector(Expression, "("), None),
            made(Deny, selector(Expression, r"\w{900}{900}"), None),
            made(Deny, selector(Wildcard, "a**"), None),
            pbs::Rule::default(),
        ] {
            let policy = pbs::Policy {
                version: 1,
                rules: vec![rule.clone()],
            };
            assert!(Policies::parse([&policy]).is_err(), "{rule:?}");
        }
    }

    #[test]
    fn a_graph_is_renamed_from_the_changed_source_up() {
        let op = |inputs: Vec<String>, identifier: Option<&str>| pb::Op {
            inputs: inputs
                .into_iter()
                .map(|digest| pb::Input { digest, index: 0 })
                .collect(),
            op: identifier.map(|identifier| {
                pb::op::Op::Source(pb::SourceOp {
                    identifier: identifier.to_owned(),
                    attrs: BTreeMap::new(),
                })
            }),
            ..pb::Op::default()
        };
        let name = |op: &pb::Op| Digest::sha256_of(&op.encode_to_vec()).to_string();
        let (a, b) = (op(vec![], Some("a")), op(vec![], Some("b")));
        let top = op(vec![name(&a), name(&b)], None);
        let definition = pb::Definition {
            def: [&a, &b, &top].map(Message::encode_to_vec).to_vec(),
            metadata: BTreeMap::from([(name(&a), pb::OpMetadata::default())]),
            source: None,
        };
        let rules = policies(vec![made(Convert, selector(Exact, "a"), Some("c"))]);
        let converted = rules.apply(&definition).unwrap().unwrap();
        let c = op(vec![], Some("c"));
        assert!(converted.metadata.contains_key(&name(&c)));
        assert_eq!(converted.def[1], definition.def[1]);
        assert_eq!(
            converted.def[2],
            op(vec![name(&c), name(&b)], None).encode_to_vec()
        );
        let other = policies(vec![made(Convert, selector(Exact, "z"), Some("c"))]);
        assert!(other.apply(&definition).unwrap().is_none());

        // In any order the last operation stays last, and what it does not need is left out.
        let middle = op(vec![name(&a)], Some("d"));
        let root = op(vec![name(&middle)], None);
        let unordered = pb::Definition {
            def: [&middle, &a, &b, &root]
                .map(Message::encode_to_vec)
                .to_vec(),
            ..pb::Definition::default()
        };
        let converted = rules.apply(&unordered).unwrap().unwrap();
        let middle = op(vec![name(&c)], Some("d"));
        let root = op(vec![name(&middle)], None);
        let expect = [&c, &middle, &root].map(Message::encode_to_vec);
        assert_eq!(converted.def, expect);
        let broken = pb::Definition {
            def: [&a, &op(vec!["sha256:0".to_owned()], None)]
                .map(Message::encode_to_vec)
                .to_vec(),
            ..pb::Definition::default()
        };
        assert!(rules.apply(&broken).is_err());
    }

    #[test]
    fn an_image_is_judged_by_its_full_name() {
        let deny = selector(Wildcard, "docker-image://docker.io/library/alpine*");
        let rules = policies(vec![made(Deny, deny, None)]);
        for name in ["alpine", "docker.io/alpine", "docker.io/library/alpine:3"] {
            let source = Source::new(&format!("docker-image://{name}"), []);
            assert!(rules.evaluate(&source, None).is_err(), "{name}");
        }
        let lines = selector(Wildcard, "*");
        let rules = policies(vec![made(Deny, lines, None)]);
        assert!(
            rules
                .evaluate(&Source::new("https://a\nb", []), None)
                .is_err()
        );
    }

    #[test]
    fn there_may_not_be_any_number_of_rules() {
        let rule = || made(Allow, selector(Exact, "a"), None);
        let policy = pbs::Policy {
            rules: (0..=MOST_RULES).map(|_| rule()).collect(),
            ..pbs::Policy::default()
        };
        assert!(Policies::parse([&policy]).is_err());
    }
}
