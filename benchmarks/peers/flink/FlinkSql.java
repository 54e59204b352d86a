import java.nio.file.Path;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.table.api.EnvironmentSettings;
import org.apache.flink.table.api.TableEnvironment;

/** One INSERT of Flink SQL on a mini cluster in this process, from the topic's beginning to its end. */
public final class FlinkSql {
    private static final String FIELDS =
            "event_id BIGINT, user_id STRING, session STRING, page STRING, event_type STRING, ts BIGINT,"
                    + " referrer STRING, ua STRING, price DOUBLE, ip STRING";

    private final String workload;
    private final String bootstrap;
    private final String topic;
    private final String output;
    private final String scratch;
    private final String group;

    private FlinkSql(String[] given) {
        workload = given[0];
        bootstrap = given[1];
        topic = given[2];
        output = given[4];
        scratch = given[5];
        group = given[6];
    }

    public static void main(String[] given) throws Exception {
        FlinkSql job = new FlinkSql(given);
        TableEnvironment tables = job.environment(given[7]);
        tables.executeSql("CREATE TABLE events (" + job.sourceFields() + ") WITH (" + job.source() + ")");
        tables.executeSql(job.sink());
        String insert = job.insert();
        long started = System.nanoTime();
        tables.executeSql(insert).await();
        double seconds = (System.nanoTime() - started) / 1e9;
        System.out.printf(
                java.util.Locale.ROOT, "%nRESULT {\"events\": %s, \"seconds\": %.4f, \"note\": \"\"}%n", given[3], seconds);
        System.out.flush();
        // Halted: the mini cluster's threads would keep the process for seconds more.
        Runtime.getRuntime().halt(0);
    }

    private TableEnvironment environment(String parallelism) {
        Configuration settings = new Configuration();
        settings.setString("parallelism.default", parallelism);
        settings.setString("restart-strategy.type", "disable");
        settings.setString("execution.checkpointing.interval", "5s");
        settings.setString("execution.checkpointing.dir", Path.of(scratch, "checkpoints").toUri().toString());
        settings.setString("io.tmp.dirs", Path.of(scratch, "temporary").toString());
        settings.setString("taskmanager.memory.managed.size", "256m");
        settings.setString("table.local-time-zone", "UTC");
        settings.setString("pipeline.object-reuse", "true");
        return TableEnvironment.create(
                EnvironmentSettings.newInstance().inStreamingMode().withConfiguration(settings).build());
    }

    private String sourceFields() {
        String time = ", time_of AS TO_TIMESTAMP_LTZ(ts, 3), WATERMARK FOR time_of AS time_of";
        return workload.equals("window") ? FIELDS + time : FIELDS;
    }

    private String source() {
        return kafka(topic)
                + ", 'properties.group.id' = '" + group + "'"
                + ", 'scan.startup.mode' = 'earliest-offset', 'scan.bounded.mode' = 'latest-offset'";
    }

    private String kafka(String name) {
        return "'connector' = 'kafka', 'format' = 'json', 'topic' = '" + name + "'"
                + ", 'properties.bootstrap.servers' = '" + bootstrap + "'";
    }

    private String sink() {
        String files = "'connector' = 'filesystem', 'path' = '" + Path.of(output).toUri() + "'";
        switch (workload) {
            case "etl":
                return "CREATE TABLE target (" + FIELDS + ") WITH (" + files
                        + ", 'format' = 'parquet', 'parquet.compression' = 'ZSTD'"
                        + ", 'sink.rolling-policy.file-size' = '16MB')";
            case "filter":
                return "CREATE TABLE target (" + FIELDS + ") WITH (" + kafka(output)
                        + ", 'properties.compression.type' = 'lz4')";
            case "window":
                return "CREATE TABLE target (window_start BIGINT, page STRING, `count` BIGINT, `sum` DOUBLE) WITH ("
                        + files + ", 'format' = 'json')";
            default:
                throw new IllegalArgumentException(workload);
        }
    }

    private String insert() {
        switch (workload) {
            case "etl":
                return "INSERT INTO target SELECT * FROM events";
            case "filter":
                return "INSERT INTO target SELECT * FROM events WHERE event_type = 'purchase' AND price > 90";
            default:
                return "INSERT INTO target"
                        + " SELECT UNIX_TIMESTAMP(CAST(window_start AS STRING)) * 1000, page, COUNT(*), SUM(price)"
                        + " FROM TUMBLE(TABLE events, DESCRIPTOR(time_of), INTERVAL '60' SECOND)"
                        + " GROUP BY window_start, window_end, page";
        }
    }
}
