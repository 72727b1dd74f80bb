//! Any sequence of requests, publications, results, failures and restarts.

mod world;

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use world::{ALIASES, Event, FEW, TENANTS, World, alias, caller, event, signed};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_files_go_that_are_in_use_and_no_alias_stops_that_was_ready(
        events in proptest::collection::vec(event(), 1..200),
        is_tight in any::<bool>(),
    ) {
        let mut world = World::new(if is_tight { 130 } else { 1 << 30 });
        world.apply(&Event::Engine(true));
        for event in &events {
            let before = world.ready();
            world.apply(event);
            world.take();
            let calm = matches!(event, Event::Publish(_) | Event::EndOfRequest(_) | Event::Request(..) | Event::Load(_));
            if calm {
                for alias in &before {
                    prop_assert!(world.ready().contains(alias), "{alias} was ready before {event:?}");
                }
            }
        }
    }

    #[test]
    fn no_tenant_has_more_here_than_it_may_and_nothing_is_here_that_nobody_is_counted_for(
        events in proptest::collection::vec(event(), 1..200),
    ) {
        let mut world = World::new(1 << 30);
        world.apply(&Event::Engine(true));
        let mut ordered = BTreeSet::new();
        for event in &events {
            if let Event::Load(number) | Event::Pin(number, true) = event {
                ordered.insert(alias(*number));
            }
            world.apply(event);
            world.take();
            let mut counted = 0;
            for tenant in 0..TENANTS {
                let count = world.table.brought_by(caller(tenant).tenant());
                prop_assert!(count <= FEW, "{count} of tenant {tenant} after {event:?}");
                counted += count;
            }
            let asked_for = world.table.entries().filter(|(alias, _)| !ordered.contains(alias));
            let wanted = asked_for.filter(|(_, entry)| entry.want == Want::Yes).count();
            prop_assert!(wanted <= counted, "somebody is not counted after {event:?}");
        }
    }

    #[test]
    fn what_is_asked_for_is_served_in_its_newest_version_once_everything_works(
        events in proptest::collection::vec(event(), 1..120),
    ) {
        let mut world = World::new(1 << 30);
        for event in &events {
            world.apply(event);
            world.take();
        }
        for number in 0..ALIASES {
            world.table.load(&alias(number), world.now).unwrap();
        }
        for name in std::mem::take(&mut world.leases) {
            world.table.release(&name);
        }
        for number in 0..ALIASES {
            world.table.pin(&alias(number), true, world.now).unwrap();
        }
        world.settle();
        for number in 0..ALIASES {
            let newest = signed(number, world.published[number]);
            let entry = &world.table.entries[&alias(number)];
            let current = world.table.current(entry).unwrap();
            prop_assert!(world.table.is_ready(entry), "{:?}", world.table.state(entry, world.now));
            prop_assert_eq!(current.signed.artifact, newest.artifact);
        }
        // Of each alias one version, and of each content one directory.
        prop_assert_eq!(world.table.versions.len(), ALIASES);
        let contents: BTreeSet<_> = world.table.versions.values().map(|version| version.prepared).collect();
        prop_assert_eq!(&world.disk, &contents);
        prop_assert_eq!(world.engine.len(), ALIASES);
    }
}
