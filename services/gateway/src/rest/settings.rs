//! What the caller set: to whom they show what, pushes, how clients look.

use axum::{Json, extract::State};
use carillon_domain::{
    privacy::Audience,
    settings::{Notify, SettingsChange, Theme},
};

use crate::{
    edge::{Caller, JsonBody, Problem},
    gateway::App,
    wire::{PrivacyJson, PrivacyPatch, SettingsJson, SettingsPatch},
};

pub async fn privacy(
    State(app): State<App>,
    Caller(who): Caller,
) -> Result<Json<PrivacyJson>, Problem> {
    let settings = app.services.people.settings(who.user).await?;
    Ok(Json(settings.privacy.into()))
}

pub async fn change_privacy(
    State(app): State<App>,
    Caller(who): Caller,
    JsonBody(patch): JsonBody<PrivacyPatch>,
) -> Result<Json<PrivacyJson>, Problem> {
    let audience =
        |field, text: Option<String>| text.map(|text| Audience::checked(field, &text)).transpose();
    let change = SettingsChange {
        last_seen: audience("last_seen", patch.last_seen)?,
        profile_photo: audience("profile_photo", patch.profile_photo)?,
        read_receipts: audience("read_receipts", patch.read_receipts)?,
        ..SettingsChange::default()
    };
    let people = &app.services.people;
    let settings = people.change_settings(who.user, change).await?;
    Ok(Json(settings.privacy.into()))
}

pub async fn settings(
    State(app): State<App>,
    Caller(who): Caller,
) -> Result<Json<SettingsJson>, Problem> {
    let settings = app.services.people.settings(who.user).await?;
    Ok(Json(settings.into()))
}

pub async fn change_settings(
    State(app): State<App>,
    Caller(who): Caller,
    JsonBody(patch): JsonBody<SettingsPatch>,
) -> Result<Json<SettingsJson>, Problem> {
    // Only `null` takes it away.
    if patch
        .language
        .as_ref()
        .is_some_and(|tag| tag.as_deref() == Some(""))
    {
        return Err(Problem::field("language", "a BCP 47 language tag, or null"));
    }
    let change = SettingsChange {
        notifications: patch
            .notifications
            .map(|text| Notify::checked("notifications", &text))
            .transpose()?,
        muted_until: patch.muted_until.map(|until| until.map(|until| until.0)),
        theme: patch
            .theme
            .map(|text| Theme::checked("theme", &text))
            .transpose()?,
        language: patch.language,
        ..SettingsChange::default()
    };
    let people = &app.services.people;
    let settings = people.change_settings(who.user, change).await?;
    Ok(Json(settings.into()))
}
