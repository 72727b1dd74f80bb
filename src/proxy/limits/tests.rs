use super::*;

fn tenant(name: &str) -> Tenant {
    name.parse().unwrap()
}

fn limits(toml: &str) -> Limits {
    Limits::new(toml::from_str(toml).unwrap())
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn one_who_asks_for_ten_thousand_unknown_adapters_is_slowed_and_others_are_not() {
    let (limits, now) = (limits("[default]\nunknown_adapters_per_minute = 60"), Instant::now());
    let (greedy, modest) = (tenant("greedy"), tenant("modest"));
    let passed = (0..10_000).filter(|_| limits.unknown_adapter(&greedy, now).is_ok()).count();
    assert_eq!(passed, 60);
    let refusal = limits.unknown_adapter(&greedy, now).unwrap_err();
    assert_eq!((refusal.limit, refusal.status()), (Limit::UnknownAdapters, 429));
    assert_eq!((refusal.retry_after, refusal.retry_after_seconds()), (seconds(1), 1));
    assert_eq!(limits.unknown_adapter(&modest, now), Ok(()));
    assert_eq!(limits.unknown_adapter(&greedy, now + seconds(1)), Ok(()));
}

#[test]
fn requests_are_counted_for_each_key_of_each_tenant() {
    let (limits, now) = (limits("[default]\nrequests_per_second = 2\nburst_seconds = 1.5"), Instant::now());
    let admit = |name: &str, key: &str, now| limits.admit(&tenant(name), key, now).map_err(|limited| limited.limit);
    for _ in 0..3 {
        assert_eq!(admit("a", "k1", now), Ok(()));
    }
    assert_eq!(admit("a", "k1", now), Err(Limit::Requests));
    assert_eq!(admit("a", "k2", now), Ok(()));
    assert_eq!(admit("b", "k1", now), Ok(()), "two tenants may call their keys the same");
    assert_eq!(admit("a", "k1", now + Duration::from_millis(500)), Ok(()));
}

#[test]
fn tokens_that_were_used_beyond_the_rate_delay_the_next_request() {
    let (limits, now) = (limits("[default]\ntokens_per_second = 100\nburst_seconds = 1"), Instant::now());
    let (who, other) = (tenant("a"), tenant("b"));
    limits.admit(&who, "k", now).unwrap();
    limits.account(&who, "k", 1_100, now);
    let refusal = limits.admit(&who, "k", now).unwrap_err();
    assert_eq!((refusal.limit, refusal.retry_after), (Limit::Tokens, seconds(10)));
    assert_eq!(refusal.to_string(), "too many tokens a second; try again in 10 s");
    assert_eq!(limits.admit(&other, "k", now), Ok(()));
    assert_eq!(limits.admit(&who, "k", now + seconds(10)), Ok(()));
}

#[test]
fn a_tenant_with_a_table_of_its_own_has_its_own_limits() {
    let adapters = self::limits("[default]\nmax_adapters = 4\n[tenants.big]\nmax_adapters = 100");
    assert_eq!((adapters.max_adapters(&tenant("small")), adapters.max_adapters(&tenant("big"))), (4, 100));
    let (limits, now) =
        (limits("[default]\nrequests_per_second = 1\nburst_seconds = 1\n[tenants.big]"), Instant::now());
    limits.admit(&tenant("small"), "k", now).unwrap();
    assert!(limits.admit(&tenant("small"), "k", now).is_err());
    for _ in 0..100 {
        limits.admit(&tenant("big"), "k", now).unwrap();
    }
}

#[test]
fn places_come_back_when_permits_are_dropped_and_leave_nothing_behind() {
    let limits = limits("max_waiters = 3\n[default]\nmax_waiters = 2");
    let enter = |name: &str| limits.enter(&tenant(name), Place::Waiter);
    let (first, _second) = (enter("a").unwrap(), enter("a").unwrap());
    let refusal = enter("a").unwrap_err();
    assert_eq!((refusal.limit, refusal.status()), (Limit::TenantPlaces, 429));
    let third = enter("b").unwrap();
    let refusal = enter("c").unwrap_err();
    assert_eq!((refusal.limit, refusal.status()), (Limit::ReplicaPlaces, 503));
    assert_eq!(limits.taken(Place::Request), 0, "each kind is counted by itself");
    drop(first);
    let _again = enter("a").unwrap();
    drop(third);
    assert_eq!(limits.taken(Place::Waiter), 2);
    assert_eq!(limits.places.lock().unwrap().tenants(), 1);
}

#[test]
fn a_full_table_forgets_the_idle_and_refuses_the_rest() {
    let (limits, now) = (limits("[default]\nrequests_per_second = 1\nburst_seconds = 1"), Instant::now());
    let who = tenant("a");
    for number in 0..MAX_CALLERS {
        limits.admit(&who, &number.to_string(), now).unwrap();
    }
    let refusal = limits.admit(&who, "one-more", now).unwrap_err();
    assert_eq!((refusal.limit, refusal.status()), (Limit::Callers, 503));
    assert!(limits.admit(&who, "7", now).is_err_and(|limited| limited.limit == Limit::Requests));
    assert_eq!(limits.admit(&who, "one-more", now + seconds(1)), Ok(()));
    assert_eq!(limits.keys.lock().unwrap().entries.len(), 1);
}

#[test]
fn rates_that_are_no_rates_and_misspelt_keys_are_refused() {
    for text in [
        "[default]\nrequests_per_second = 0",
        "[default]\nrequests_per_second = -1",
        "[default]\nrequests_per_second = nan",
        "[default]\nrequests_per_second = inf",
        "[default]\nrequest_per_second = 1",
        "[tenants.a]\nburst_seconds = 0",
    ] {
        assert!(toml::from_str::<LimitsConfig>(text).is_err(), "{text}");
    }
}
