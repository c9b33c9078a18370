"""What the routes that are compatible with Azure Anomaly Detector take and give, in that service's own names."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Granularity = Literal["yearly", "monthly", "weekly", "daily", "hourly", "minutely", "secondly", "microsecond", "none"]
ImputeMode = Literal["auto", "previous", "linear", "fixed", "zero", "notFill"]

EXAMPLE: dict[str, Any] = {
    "series": [
        {"timestamp": f"2026-01-{day:02}T00:00:00Z", "value": value}
        for day, value in enumerate([10.1, 10.3, 9.9, 10.2, 10.0, 9.8, 10.1, 10.2, 9.9, 10.0, 10.1, 25.0, 10.0], 1)
    ],
    "granularity": "daily",
    "sensitivity": 95,
}


class AzurePoint(BaseModel):
    """A point of a series."""

    timestamp: Any = Field(default=None, description="ISO 8601; may be left out where `granularity` is `none`.")
    value: float = Field(description="The measurement.", allow_inf_nan=False)


class AzureDetectRequest(BaseModel):
    """A series, whole, and how to judge it."""

    model_config = ConfigDict(populate_by_name=True, json_schema_extra={"examples": [EXAMPLE]})

    series: list[AzurePoint] = Field(description="12 points or more in order of time, no stamp twice.", min_length=12)
    granularity: Granularity | None = Field(
        default=None, description="How far the points are apart, with `customInterval`; left out: `none`."
    )
    custom_interval: int | None = Field(
        default=None, alias="customInterval", ge=1, description="Steps of `granularity` from one point to the next."
    )
    period: int | None = Field(
        default=None, ge=0, description="Points after which the series repeats itself; told back. Left out: found."
    )
    max_anomaly_ratio: float | None = Field(
        default=None,
        alias="maxAnomalyRatio",
        gt=0,
        lt=0.5,
        description="Largest share of points that are anomalies: the most severe ones stay. Left out: 0.25.",
    )
    sensitivity: int | None = Field(
        default=None, ge=0, le=99, description="The band is (100 - sensitivity) margins wide. Left out: 99."
    )
    impute_mode: ImputeMode | None = Field(
        default=None, alias="imputeMode", description="What stands for points that are missing between the stamps."
    )
    impute_fixed_value: float | None = Field(
        default=None, alias="imputeFixedValue", allow_inf_nan=False, description="For `imputeMode` = `fixed`."
    )


class AzureEntireResult(BaseModel):
    """Every list is as long as the series."""

    model_config = ConfigDict(populate_by_name=True)

    period: int = Field(description="Points after which the series repeats itself; 0: it does not.")
    expected_values: list[float] = Field(alias="expectedValues", description="What was expected at each point.")
    upper_margins: list[float] = Field(
        alias="upperMargins", description="The upper boundary is expected + (100 - sensitivity) × this."
    )
    lower_margins: list[float] = Field(
        alias="lowerMargins", description="The lower boundary is expected - (100 - sensitivity) × this."
    )
    is_anomaly: list[bool] = Field(alias="isAnomaly", description="Whether the point is an anomaly.")
    is_negative_anomaly: list[bool] = Field(alias="isNegativeAnomaly", description="One below what was expected.")
    is_positive_anomaly: list[bool] = Field(alias="isPositiveAnomaly", description="One above it.")
    severity: list[float] = Field(description="0 for normal points, up to 1 for utterly unexpected ones.")


class AzureLastResult(BaseModel):
    """What is to be said of the last point."""

    model_config = ConfigDict(populate_by_name=True)

    period: int = Field(description="Points after which the series repeats itself; 0: it does not.")
    suggested_window: int = Field(
        alias="suggestedWindow", description="Points to send for judging the next one: four periods and itself."
    )
    expected_value: float = Field(alias="expectedValue", description="What was expected.")
    upper_margin: float = Field(alias="upperMargin", description="As in the answer for the entire series.")
    lower_margin: float = Field(alias="lowerMargin", description="As in the answer for the entire series.")
    is_anomaly: bool = Field(alias="isAnomaly", description="Whether it is an anomaly.")
    is_negative_anomaly: bool = Field(alias="isNegativeAnomaly", description="One below what was expected.")
    is_positive_anomaly: bool = Field(alias="isPositiveAnomaly", description="One above it.")
    severity: float = Field(description="0 where it is normal, up to 1 where it is utterly unexpected.")


class AzureError(BaseModel):
    """Why there is no answer."""

    code: str = Field(description="Such as `InvalidSeries`; also in the header `x-ms-error-code`.")
    message: str = Field(description="What is wrong, and what to do about it.")
