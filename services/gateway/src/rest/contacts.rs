//! Contacts and blocks of the caller.

use axum::{Json, extract::State};
use carillon_domain::UserId;
use http::StatusCode;

use super::{next_cursor, page_limit};
use crate::{
    edge::{Caller, PathParams, Problem, QueryParams},
    gateway::App,
    wire::{ListQuery, Page, RelatedJson},
};

pub async fn list(
    State(app): State<App>,
    Caller(who): Caller,
    QueryParams(query): QueryParams<ListQuery<UserId>>,
) -> Result<Json<Page<RelatedJson>>, Problem> {
    let limit = page_limit(query.limit, 100, 1000)?;
    let people = &app.services.people;
    let contacts = people.contacts(who.user, query.cursor, limit).await?;
    let next = next_cursor(&contacts, limit, |contact| contact.user.to_string());
    Ok(Json(Page {
        items: contacts.into_iter().map(Into::into).collect(),
        next,
    }))
}

pub async fn get(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(other): PathParams<UserId>,
) -> Result<Json<RelatedJson>, Problem> {
    let contact = app.services.people.contact(who.user, other).await?;
    Ok(Json(contact.into()))
}

pub async fn put(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(other): PathParams<UserId>,
) -> Result<StatusCode, Problem> {
    app.services.people.put_contact(who.user, other).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn remove(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(other): PathParams<UserId>,
) -> Result<StatusCode, Problem> {
    app.services.people.remove_contact(who.user, other).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn blocks(
    State(app): State<App>,
    Caller(who): Caller,
    QueryParams(query): QueryParams<ListQuery<UserId>>,
) -> Result<Json<Page<RelatedJson>>, Problem> {
    let limit = page_limit(query.limit, 100, 1000)?;
    let people = &app.services.people;
    let blocks = people.blocks(who.user, query.cursor, limit).await?;
    let next = next_cursor(&blocks, limit, |block| block.user.to_string());
    Ok(Json(Page {
        items: blocks.into_iter().map(Into::into).collect(),
        next,
    }))
}

pub async fn block(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(other): PathParams<UserId>,
) -> Result<StatusCode, Problem> {
    app.services.people.block(who.user, other).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn unblock(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(other): PathParams<UserId>,
) -> Result<StatusCode, Problem> {
    app.services.people.unblock(who.user, other).await?;
    Ok(StatusCode::NO_CONTENT)
}
