"""Every setting of Project Bridge, typed, with its default and meaning.

Read with `load()` when a command, asset or test needs it, never at import.
Values come from the environment, then from `.env` beside the project.
"""

from datetime import date, timedelta
from pathlib import Path

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PROJECT_ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """The settings of one process; environment names are `BRIDGE_` + the field's name."""

    model_config = SettingsConfigDict(
        env_prefix="BRIDGE_",
        env_file=PROJECT_ROOT / ".env",
        # `BRIDGE_DATABASE_URL=` in a copied example means that there is none.
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
    )

    home: Path = Field(
        PROJECT_ROOT / ".bridge", validate_default=True, description="The folder that holds all state."
    )
    database_url: SecretStr | None = Field(
        None,
        description="A Postgres (15 or newer) to use instead of the embedded one, as `postgresql://…`.",
    )
    dagster_database: str = Field(
        "bridge_dagster",
        description="Name of the database for Dagster's own storage, on the same server as the data.",
    )
    secret_key: SecretStr | None = Field(
        None,
        description="The key that seals credentials, 32 bytes in base64; without it one is made in the home.",
    )
    secret_key_command: str | None = Field(
        None,
        description="A command that prints that key instead, such as one that asks a key management service.",
    )
    former_secret_keys: SecretStr | None = Field(
        None,
        description="Keys of earlier times, newest first, separated by commas: `bridge secrets rotate`.",
    )
    first_day: date = Field(date(2015, 1, 1), description="The first day that can be a partition (UTC).")
    settle_lag: timedelta = Field(
        timedelta(hours=2),
        description="How long after its end (UTC midnight) a day may still be changing at the source.",
    )
    schedule_cron: str = Field(
        "30 3 * * *", description="When the daily schedule looks for settled days to extract (UTC)."
    )
    schedule_days_per_tick: int = Field(
        400, ge=1, description="At most this many days of one connection are requested by one tick."
    )
    journal_max_age: timedelta = Field(
        timedelta(hours=6),
        description="A killed extraction younger than this resumes from its page journal.",
    )
    window_padding: timedelta = Field(
        timedelta(hours=24),
        description="How much more than the window is asked for on both sides, and cut off here.",
    )
    max_sweeps: int = Field(
        5, ge=2, description="Full readings of a listing before an extraction fails as never whole."
    )
    confirm_pages: int = Field(
        250,
        ge=1,
        description="A listing of up to this many pages is confirmed without its filter; of a longer "
        "one, this many pages are compared with what the filter let through.",
    )
    attempts: int = Field(3, ge=1, description="Attempts per request to the source.")
    backoff_initial: float = Field(1.0, ge=0, description="Seconds before the second attempt.")
    backoff_max: float = Field(8.0, ge=0, description="Longest wait in seconds between attempts.")
    retry_after_budget: float = Field(
        900.0, ge=0, description="Seconds one request may spend waiting because `Retry-After` said so."
    )
    connect_timeout: float = Field(10.0, gt=0, description="Seconds to connect to the source.")
    read_timeout: float = Field(
        60.0, gt=0, description="Seconds one answer may take, from the request to its last byte."
    )
    max_body_bytes: int = Field(
        268_435_456, gt=0, description="Largest answer accepted, in bytes after decompression."
    )
    max_quarantined_share: float = Field(
        0.05, ge=0, le=1, description="Share of rejected records above which a batch is blocked."
    )
    quarantine_minimum: int = Field(
        100, ge=1, description="Batches with fewer records than this are not blocked by that share."
    )
    certify_cron: str = Field(
        "0 5 * * 0",
        description="When every scheduled connection is certified against its source (UTC).",
    )
    certify_lookups: int = Field(
        5_000,
        ge=10,
        description="At most this many records of an entity are asked for one by one for a certificate.",
    )
    max_disappeared_share: float = Field(
        0.10,
        ge=0,
        le=1,
        description="Share of an entity's rows that, gone at once, are not deleted until accepted.",
    )
    disappeared_minimum: int = Field(
        2, ge=1, description="Fewer records than this, gone at once, are deleted whatever their share."
    )
    rows_per_chunk: int = Field(
        4_000, ge=1, description="Records handled at a time; bounds the memory of a run."
    )
    smtp_url: SecretStr | None = Field(
        None,
        description="The mail server, as `smtp://user:password@host:587` (STARTTLS is required off this "
        "machine, unless `?starttls=no`) or `smtps://…:465`.",
    )
    mail_from: str | None = Field(
        None, description="The sender of mail, such as `Project Bridge <bridge@example.com>`."
    )
    public_url: str | None = Field(
        None, pattern=r"^https?://\S+$", description="Where readers of messages reach Dagster; makes links."
    )
    delivery_timeout: float = Field(
        20.0, gt=0, description="Seconds that a mail server may take for one answer."
    )
    delivery_give_up: timedelta = Field(
        timedelta(days=5), description="A message that could not be sent for so long is given up, loudly."
    )
    log_level: str = Field(
        "INFO",
        validation_alias=AliasChoices("LOG_LEVEL", "BRIDGE_LOG_LEVEL"),
        description="DEBUG, INFO, WARNING or ERROR; also read from `LOG_LEVEL`.",
    )
    log_max_bytes: int = Field(20_000_000, gt=0, description="A log file is rotated at this size.")
    log_backups: int = Field(5, ge=0, description="Rotated log files kept beside each log file.")

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        path = home.expanduser().absolute()
        # dlt takes one in the path of its files, to which it follows links, for a place to fill in.
        for each in (path, path.resolve()):
            if "%" in str(each):
                raise ValueError(f"{each} has a % in it; choose a folder without one")
        return path


def load(**overrides: object) -> Settings:
    """Reads the settings now; `overrides` win over environment and `.env`.

    Raises:
        pydantic.ValidationError: a value does not have the declared type or range.
    """
    return Settings(**overrides)  # type: ignore[arg-type]
